"""The examples for Slurm and Kubernetes start `forgellm train` on every machine with flags that it has."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import yaml

from forgellm.cli.main import all_parsers
from forgellm.cli.train import recipe_from
from forgellm.schema.recipe import Recipe
from serving import eventually
from stand_in_ssh import write_program

EXAMPLES = Path(__file__).parents[2] / "examples"
# Both note what they are called with; the step ends once it is asked to, with a status of its own.
SRUN = """#!/bin/sh
printf '%s\\n' "$@" > srun
while [ ! -e stop ]; do sleep 0.02; done
exit 3
"""
FORGELLM = """#!/bin/sh
[ "$*" = "runs stop" ] && touch stop
"""


def recipe_of(arguments: list[str], folder: Path) -> tuple[argparse.Namespace, Recipe]:
    """Of a command `forgellm ...`, as `forgellm train` reads it, on top of a small run.yaml."""
    args = all_parsers().parse_args(arguments)
    file = folder / "run.yaml"
    file.write_text("model_name: small\ndataset: notes\nbatch_size: 8\n")
    given = {n: v for n in Recipe.model_fields if (v := getattr(args, n)) is not None}
    return args, recipe_from(file, given)


def test_slurm_starts_the_command_on_every_node_and_stops_it_in_order(tmp_path: Path) -> None:
    for name, text in {
        "scontrol": "#!/bin/sh\nprintf 'node3\\nnode4\\n'\n",
        "srun": SRUN,
        "forgellm": FORGELLM,
    }.items():
        write_program(tmp_path / "bin" / name, text)
    surroundings = {
        **os.environ,
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "node[3-4]",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
    }
    command = ["bash", EXAMPLES / "slurm.sh", "run.yaml"]
    job = subprocess.Popen(command, cwd=tmp_path, env=surroundings)
    eventually(lambda: (tmp_path / "srun").is_file() and (tmp_path / "srun").read_text())
    job.send_signal(signal.SIGTERM)
    assert job.wait() == 3
    words = (tmp_path / "srun").read_text().splitlines()
    args, recipe = recipe_of(words[words.index("forgellm") + 1 :], tmp_path)
    assert args.config == Path("run.yaml")
    assert (recipe.nnodes, recipe.nproc_per_node) == (2, 4)
    assert recipe.rdzv_endpoint == "node3:29400"


def test_slurm_asks_for_one_task_on_each_node() -> None:
    text = (EXAMPLES / "slurm.sh").read_text()
    assert "#SBATCH --ntasks-per-node=1\n" in text


def test_kubernetes_starts_the_command_in_a_pod_on_each_machine(tmp_path: Path) -> None:
    service, job = yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text())
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    name = job["metadata"]["name"]
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": name}
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (train,) = pod["containers"]
    args, recipe = recipe_of(train["command"][1:], tmp_path)
    assert train["command"][0] == "forgellm"
    assert spec["completions"] == spec["parallelism"] == recipe.nnodes
    assert (spec["completionMode"], spec["backoffLimit"]) == ("Indexed", 0)
    assert train["resources"]["limits"]["nvidia.com/gpu"] == recipe.nproc_per_node
    assert pod["subdomain"] == service["metadata"]["name"]
    first = f"{name}-0.{pod['subdomain']}"
    assert recipe.rdzv_endpoint == f"{first}:29400"
    assert all(first in " ".join(waiting["command"]) for waiting in pod["initContainers"])
    assert args.workspace in _mounts(train, pod)
    assert args.config.is_relative_to(args.workspace)


def _mounts(container: dict[str, Any], pod: dict[str, Any]) -> set[str]:
    """Where volumes that the pod has are mounted."""
    volumes = {volume["name"] for volume in pod["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts.keys() <= volumes
    return set(mounts.values())
