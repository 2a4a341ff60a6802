"""What a recipe will take of memory and disk, from the model's shape alone. No engine needed.

Letters: P parameters, L layers, D hidden size, F inner size of the MLP, V vocabulary, H and K widths of
all query heads and of all key heads, n processes.
"""

from __future__ import annotations

from dataclasses import dataclass

from forgellm.catalog.facts import ModelFacts
from forgellm.hardware import GB
from forgellm.schema.recipe import Recipe

DEFAULT_SEQ_LENGTH = 3072
# Kinds of models whose blocks the torch engine trains in closed form on a CPU.
IN_CLOSED_FORM = frozenset({"llama", "mistral", "qwen2", "qwen3"})

# Calibrated on what `rehearse` measured, see benchmarks/README.md.
_PROCESS_BYTES = 0.45 * GB
_GROUP_BYTES = 0.2 * GB  # of a process that talks to others
_LOSS_BYTES = 0.23 * GB  # of a frozen head; in bfloat16 on a processor none was seen
# Of activations: the C library keeps freed memory in pieces that do not fit.
_ALLOCATOR = 1.2  # all weights, DoRA
_ALLOCATOR_LORA = {False: 1.0, True: 1.75}  # by grad_checkpoint
_MARGIN = 1.05


@dataclass(frozen=True)
class Device:
    """What computes.

    Attributes:
        engine: "torch" or "mlx".
        kind: "cpu", "cuda", "metal" or "mps".
        dtype: of most products, "float32" or "bfloat16".
    """

    engine: str
    kind: str
    dtype: str

    @property
    def num_bytes(self) -> int:
        """Of a number of its type."""
        return 2 if self.dtype == "bfloat16" else 4


@dataclass(frozen=True)
class MemoryEstimate:
    """Peak bytes of one process, by what takes them.

    Attributes:
        loading: of the machine's own memory, while a process reads the whole model to keep a share
            of it; 0 where that is not done.
        offloaded: of the machine's own memory, while the GPU computes.
    """

    weights: int
    optimizer: int
    activations: int
    process: int
    loading: int = 0
    offloaded: int = 0

    @property
    def total(self) -> int:
        return int((self.weights + self.optimizer + self.activations) * _MARGIN + self.process)

    def to_dict(self, num_processes: int = 1) -> dict[str, float]:
        """Of so many processes together, in GB."""
        parts = {"weights": self.weights, "optimizer": self.optimizer}
        parts |= {"activations": self.activations, "process": self.process, "total": self.total}
        return {f"{name}_gb": round(num_processes * size / GB, 3) for name, size in parts.items()}


def resolve_seq_length(recipe: Recipe, context_length: int | None) -> int:
    """Tokens per sequence: what was asked for, or 3072, within the model's context."""
    wanted = recipe.max_seq_length or DEFAULT_SEQ_LENGTH
    return min(wanted, context_length) if context_length else wanted


def trainable_parameters(facts: ModelFacts, recipe: Recipe) -> int:
    """Parameters that the optimiser moves, from the sizes in `facts`."""
    if recipe.fine_tune_type == "full":
        return facts.num_parameters
    s = _Shape.of(facts)
    rank = recipe.lora_rank
    per_layer = rank * (4 * s.hidden + 2 * s.heads + 2 * s.kv_heads)
    if recipe.lora_target != "attention":
        per_layer += rank * 3 * (s.hidden + s.mlp)
    return per_layer * min(s.layers, recipe.num_layers or s.layers)


def checkpoint_bytes(facts: ModelFacts, recipe: Recipe) -> int:
    """Weights and two moments of one checkpoint, all float32."""
    return 12 * trainable_parameters(facts, recipe)


def is_sharded(recipe: Recipe) -> bool:
    """Whether each process holds a share of the model, and not all of it."""
    return recipe.parallelism == "fsdp" and recipe.num_processes > 1


def estimate_memory(
    facts: ModelFacts, recipe: Recipe, seq_len: int, device: Device
) -> MemoryEstimate:
    """Peak memory of a step in one of the recipe's processes, each with its rows of the batch.

    While the backward pass makes gradients it frees activations: the peak is where it begins or
    where it ends. So `optimizer` has all gradients, `activations` what they exceed these by.
    """
    shape, full = _Shape.of(facts), recipe.fine_tune_type == "full"
    shares = recipe.num_processes if is_sharded(recipe) else 1
    trainable = trainable_parameters(facts, recipe) / shares
    weights = _weight_bytes(facts, full, device)
    held = weights if facts.quantization else weights / shares  # packed weights are not shared out
    optimizer = trainable * (12 if full else 16)  # gradient, two moments, and adapters themselves
    offloaded = held + optimizer if is_sharded(recipe) and recipe.cpu_offload else 0
    whole = _gathered_bytes(facts, full, device) if is_sharded(recipe) else 0
    if full and device.num_bytes == 2 and not whole and not _in_closed_form(facts, recipe, device):
        whole = facts.num_parameters * 2  # the cast copies that autocast keeps
    kept, at_once = _bytes_per_token(facts, recipe, device)
    num_tokens = -(-recipe.batch_size // recipe.num_processes) * seq_len
    head = shape.vocab * shape.hidden if full else 0
    begins = num_tokens * (kept + at_once) + head * (2 * device.num_bytes + (0 if whole else 4))
    ends = num_tokens * at_once
    if facts.tie_word_embeddings:
        ends += 8 * head / shares  # the embedding's gradient, and its sum with the head's
    activations = max(begins - (0 if offloaded else 4 * trainable), ends)
    return MemoryEstimate(
        weights=int(whole if offloaded else held + whole),
        optimizer=int(0 if offloaded else optimizer),
        activations=int(activations),
        process=int(_process_bytes(recipe, device)),
        loading=int(weights + _PROCESS_BYTES) if is_sharded(recipe) else 0,
        offloaded=int(offloaded),
    )


def _weight_bytes(facts: ModelFacts, full: bool, device: Device) -> int:
    """Trained weights are float32; 4- and 8-bit weights stay as they are."""
    if facts.quantization:
        return facts.size_bytes
    return facts.num_parameters * (4 if full else device.num_bytes)


def _process_bytes(recipe: Recipe, device: Device) -> float:
    """What a process takes besides, whatever the model."""
    is_torch_cpu = device.engine == "torch" and device.kind == "cpu"
    is_lean = recipe.fine_tune_type == "full" or (is_torch_cpu and device.num_bytes == 2)
    group = _GROUP_BYTES if recipe.num_processes > 1 else 0
    return _PROCESS_BYTES + group + (0 if is_lean else _LOSS_BYTES)


def _gathered_bytes(facts: ModelFacts, full: bool, device: Device) -> float:
    """What is whole in each process while it computes: embedding and head, and of the blocks the one
    at work and the next, each also as it arrives; trained, also the largest one's gradient before and
    as it is sent. On a CPU gloo sends it twice, and the C library keeps what the model took whole."""
    s, is_cpu = _Shape.of(facts), device.kind == "cpu"
    root = s.vocab * s.hidden * (1 if facts.tie_word_embeddings else 2)
    block = max(0, facts.num_parameters - root) / s.layers
    found = 0.0 if facts.quantization else (2 * root + 3 * block) * device.num_bytes
    if full:
        found += (16 if is_cpu else 8) * max(root, block)
    return found + (_weight_bytes(facts, full, device) if is_cpu else 0)


def _bytes_per_token(facts: ModelFacts, recipe: Recipe, device: Device) -> tuple[float, float]:
    """What the blocks keep of a token for the backward pass, and what one block's backward pass takes
    besides. With `grad_checkpoint` a block keeps its input, and what else it needs when its turn
    comes."""
    s, size = _Shape.of(facts), device.num_bytes
    at_once = size * (4 * s.mlp + 8 * s.hidden + 6 * s.heads)
    residual = size
    if _in_closed_form(facts, recipe, device):
        full = recipe.fine_tune_type == "full"
        residual = 4 if full else size
        low = 0 if full else 7 * recipe.lora_rank
        block = 2 * s.hidden * residual + size * (2 * (s.heads + s.kv_heads + s.mlp) + low)
        slack = _ALLOCATOR if full else _ALLOCATOR_LORA[recipe.grad_checkpoint]
    else:
        block, slack = size * (7 * s.hidden + 3 * (s.heads + s.kv_heads) + 4 * s.mlp), 1.0
        if recipe.fine_tune_type == "dora":  # what each layer gives before its magnitude
            block += size * (s.heads + 2 * s.kv_heads + 2 * s.hidden + 2 * s.mlp)
            slack = _ALLOCATOR
    layers = min(s.layers, recipe.num_layers or s.layers)
    kept = layers * s.hidden * residual + block if recipe.grad_checkpoint else layers * block
    return kept * slack, at_once * slack


def _in_closed_form(facts: ModelFacts, recipe: Recipe, device: Device) -> bool:
    return (
        (device.engine, device.kind) == ("torch", "cpu")
        and facts.model_type in IN_CLOSED_FORM
        and facts.quantization is None
        and recipe.fine_tune_type != "dora"
        and not recipe.lora_dropout
        and not is_sharded(recipe)
    )


@dataclass(frozen=True)
class _Shape:
    """Sizes of a model, usual ones where its configuration does not say. Heads are all of them."""

    hidden: int
    heads: int
    kv_heads: int
    mlp: int
    layers: int
    vocab: int

    @classmethod
    def of(cls, facts: ModelFacts) -> _Shape:
        hidden = facts.hidden_size or 2048
        head_dim = facts.head_dim or 64
        num_heads = facts.num_heads or hidden // head_dim
        return cls(
            hidden,
            num_heads * head_dim,
            (facts.num_kv_heads or num_heads) * head_dim,
            facts.intermediate_size or 4 * hidden,
            facts.num_layers or 24,
            facts.vocab_size or 32_000,
        )
