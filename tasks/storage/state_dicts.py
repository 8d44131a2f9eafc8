"""From what a checkpoint holds to the weights of one model: which of several, under which names.

Training scripts put the state dict under a key, beside an averaged copy (EMA), an optimizer and more;
wrappers (DataParallel, `torch.compile`, Lightning) put a prefix before the names. Where there is a model, its
own names tell what belongs to it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vit_ptq_bench.tasks.errors import TaskError

State = Mapping[str, Tensor]

Adapt = Callable[[dict[str, Tensor], nn.Module], tuple[dict[str, Tensor], tuple[str, ...]]]
"""Brings a state dict of another layout or size to a model's; returns it with what has to be said."""

CONTAINERS = (
    "state_dict",
    "model",
    "model_state_dict",
    "module",
    "net",
    "network",
    "weights",
    "params",
)
"""Keys under which training scripts put the state dict; the first that is there is taken."""

AVERAGED = re.compile(r"(^|[._])(ema|swa)([._]|$)")
"""In a key or prefix: an average of the weights over the training."""

WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Parts of names that stand for no module of the model."""

PREFIXES = ("module.", "model.")
"""What wrappers put before all names, taken off where no model tells."""

DERIVED = ("relative_position_index", "attn_mask", "relative_coords_table", "num_batches_tracked")
"""Last parts of names of buffers that follow from the architecture: its own are used."""

COUNTERS = ("total_ops", "total_params", "n_averaged")
"""Last parts of names of what profilers and averages count."""

MAX_DEPTH = 4
"""How deep in nested dictionaries a state dict is looked for."""


@dataclass(frozen=True)
class Candidate:
    """A state dict in a checkpoint.

    Attributes:
        place: keys that lead to it and the prefix of its names, for messages and to choose by.
        state: tensors by the model's names.
        fitting: how many of the model's names it has.
        left_out: tensors beside it, of other prefixes.
    """

    place: str
    state: State
    fitting: int
    left_out: int = 0

    @property
    def averaged(self) -> bool:
        """Whether it is an average over the training."""
        return AVERAGED.search(self.place) is not None

    @property
    def rank(self) -> tuple[bool, int]:
        """Raw weights first, then the order of `CONTAINERS`."""
        parts = [part for part in self.place.split(".") if part]
        known = [
            CONTAINERS.index(part) if part in CONTAINERS else len(CONTAINERS) for part in parts
        ]
        return self.averaged, max(known, default=-1)


def best_state_dict(
    data: object, names: Collection[str] | None, source: str
) -> tuple[State, tuple[str, ...]]:
    """Return the state dict in ``data`` and what has to be said of the choice.

    Args:
        data: what a checkpoint holds.
        names: of the model's tensors; None: there is no model, and names in `CONTAINERS` decide.
        source: the file, for errors.

    Raises:
        TaskError: there is none, or there are several of which none goes first.
    """
    found = [
        each for place, state in _state_dicts(data) for each in _candidates(place, state, names)
    ]
    if not found:
        raise TaskError(f"{source}: holds no state dict (names of parameters -> tensors)")
    most = max(each.fitting for each in found)
    if not most and names is not None:
        return best_state_dict(data, None, source)
    best = sorted((each for each in found if each.fitting == most), key=lambda each: each.rank)
    if len(best) > 1 and best[0].rank == best[1].rank:
        places = ", ".join(repr(each.place) for each in best)
        raise TaskError(
            f"{source}: holds several models ({places}), and nothing tells which is meant; save the one you "
            "mean in a file of its own"
        )
    return best[0].state, _notes(best, source)


def _notes(best: list[Candidate], source: str) -> tuple[str, ...]:
    taken, others = best[0], best[1:]
    notes = []
    if any(each.averaged != taken.averaged for each in others):
        places = ", ".join(repr(each.place) for each in others if each.averaged)
        notes.append(
            f"{source} holds raw and averaged (EMA) weights: the raw ones were taken ({taken.place!r}), "
            f"not {places}"
        )
    elif taken.averaged:
        notes.append(
            f"{source} holds averaged (EMA) weights alone ({taken.place!r}): they were taken"
        )
    elif others:
        places = ", ".join(repr(each.place) for each in others)
        notes.append(f"{source} holds several state dicts: {taken.place!r} was taken, not {places}")
    if taken.left_out:
        notes.append(
            f"{source}: {taken.left_out} tensors that are not the model's were left out ({taken.place!r} was "
            "taken)"
        )
    return tuple(notes)


def _state_dicts(data: object) -> Iterator[tuple[str, State]]:
    """Every dictionary with tensors under names, with the keys that lead to it; each once."""
    seen: set[int] = set()
    pending: list[tuple[str, object, int]] = [("", data, 0)]
    while pending:
        place, value, depth = pending.pop(0)
        if not isinstance(value, dict) or id(value) in seen or depth > MAX_DEPTH:
            continue
        seen.add(id(value))
        state = {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, Tensor)}
        if state:
            yield place, state
        pending += [
            (f"{place}.{key}" if place else key, inner, depth + 1)
            for key, inner in value.items()
            if isinstance(key, str)
        ]


def _candidates(place: str, state: State, names: Collection[str] | None) -> Iterator[Candidate]:
    """The state dict, once for each prefix under which all that fits best lies."""
    state = _unwrapped(state)
    if names is None:
        prefix = _common_prefix(state)
        known = place.rpartition(".")[2] in ("", *CONTAINERS) or AVERAGED.search(place) is not None
        yield Candidate(place, _below(state, prefix), len(state) if known else 0)
        return
    counts = Counter(_prefixes(state, frozenset(names)))
    most = max(counts.values(), default=0)
    for prefix in [prefix for prefix, count in counts.items() if count == most] or [""]:
        inner = _below(state, prefix)
        beside = [n for n in state if not n.startswith(prefix) and not _is_counter(n)]
        whole = ".".join(part for part in (place, prefix.rstrip(".")) if part)
        yield Candidate(whole, inner, most, len(beside))


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] in COUNTERS


def _unwrapped(state: State) -> State:
    clean = {}
    for name, tensor in state.items():
        for part in WRAPPERS:
            name = name.replace(part, "")
        clean[name] = tensor
    return clean if len(clean) == len(state) else state


def _common_prefix(state: State) -> str:
    whole = ""
    while True:
        rest = [name.removeprefix(whole) for name in state]
        found = [prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in rest)]
        if not found:
            return whole
        whole += found[0]


def _below(state: State, prefix: str) -> State:
    return {n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)}


def _prefixes(state: State, names: frozenset[str]) -> Iterator[str]:
    """For each tensor every prefix without which its name is one of the model's."""
    for name in state:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in names:
                yield "".join(f"{part}." for part in parts[:start])


def fitted(state: State, module: nn.Module) -> dict[str, Tensor]:
    """Return the state dict without what the model does not need, with the buffers that follow from it."""
    own = module.state_dict()
    flat_copies = {f"ema_{name.replace('.', '_')}" for name in own}
    wanted = {
        name: tensor
        for name, tensor in state.items()
        if not _is_counter(name)
        and name.rpartition(".")[2] not in DERIVED
        and name not in flat_copies
    }
    return wanted | {name: own[name] for name in own if name.rpartition(".")[2] in DERIVED}


def load_strictly(module: nn.Module, state: State, source: str) -> None:
    """Load every tensor into ``module``.

    Raises:
        TaskError: missing, unexpected or mis-shaped tensors, or values that are no numbers; the first few are
            named.
    """
    problems = misfits(module, state)
    if problems:
        raise TaskError(f"{source} does not fit {type(module).__name__}: {'; '.join(problems)}")
    broken = [
        name
        for name, tensor in state.items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all())
    ]
    if broken:
        raise TaskError(
            f"{source}: {len(broken)} of {len(state)} tensors hold NaN or infinite values "
            f"({', '.join(broken[:3])}): the training diverged or the file is damaged"
        )
    module.load_state_dict({n: v.float() if v.is_floating_point() else v for n, v in state.items()})


def misfits(module: nn.Module, state: State) -> list[str]:
    """Return in words what of a state dict does not fit a model; nothing: all fits."""
    own = module.state_dict()
    common = sorted(set(own) & set(state))
    shaped = [name for name in common if own[name].shape != state[name].shape]
    other = [name for name in common if not _is_alike(own[name], state[name])]
    found = (
        ("missing", sorted(set(own) - set(state))),
        ("unexpected", sorted(set(state) - set(own))),
        (
            "of another shape",
            [
                f"{name} is {tuple(state[name].shape)}, the model has {tuple(own[name].shape)}"
                for name in shaped
            ],
        ),
        ("of another type", [f"{name} is {_type(state[name])}" for name in other]),
    )
    problems = [f"{len(names)} {what}: {', '.join(names[:3])}" for what, names in found if names]
    if not common:
        return [
            f"none of its {len(own)} tensors is there (another model or library); {problems[-1]}"
        ]
    if shaped and all(own[n].shape[1:] == state[n].shape[1:] for n in shaped):
        problems.append("it seems to be trained on another number of classes")
    return problems


def _is_alike(own: Tensor, given: Tensor) -> bool:
    """Whether a tensor holds numbers of a kind that the model's can take: floats, or the same type."""
    dense = given.layout == torch.strided and given.device.type == "cpu" and not given.is_quantized
    if own.is_floating_point():
        return dense and given.is_floating_point()
    return dense and own.dtype == given.dtype


def _type(tensor: Tensor) -> str:
    words = str(tensor.dtype).removeprefix("torch.")
    return words if tensor.layout == torch.strided else f"{words}, {tensor.layout}"
