"""Is everything up, and what does this machine have left."""

from __future__ import annotations

import asyncio
import platform

from fastapi import APIRouter

from forgellm import __version__, hardware
from forgellm.paths import Workspace
from forgellm.runs.store import active_run
from forgellm.schema.training import Components, HealthReply, SystemInfo
from forgellm.web.api.model_proxy import ModelServer


def make_router(workspace: Workspace, model_server: ModelServer) -> APIRouter:
    router = APIRouter(prefix="/api")

    @router.get("/health")
    async def health() -> HealthReply:
        """State of each component, and figures of this machine."""
        is_model_server_up = await model_server.is_running()
        return HealthReply(
            status="healthy" if is_model_server_up else "degraded",
            version=__version__,
            components=Components(
                web_server="running",
                model_server="running" if is_model_server_up else "stopped",
                training_pipeline="training" if active_run(workspace) else "idle",
            ),
            system_info=SystemInfo(
                memory_total_gb=_gb(hardware.memory_total_bytes()),
                memory_available_gb=_gb(hardware.memory_available_bytes()),
                disk_free_gb=_gb(hardware.disk_free_bytes(workspace.root)),
                python_version=platform.python_version(),
                mlx_version=hardware.package_version("mlx"),
                num_cores=hardware.num_cores(),
                gpus=list(await asyncio.to_thread(hardware.gpu_names)),
            ),
        )

    return router


def _gb(num_bytes: int) -> float:
    return round(num_bytes / hardware.GB, 1)
