"""Checkpoints by orbax with sha256 manifests. They survive `kill -9`, flipped bits and a change of mesh.

    directory/20/params, 20/optimizer, ...   one orbax item for each entry of `arrays`
    directory/20/meta                        score, shapes, dtypes and the caller's JSON
    directory/manifests/20.json              sha256 of all its files, sealed, written after orbax has committed them

A step without a manifest is incomplete and ignored. A step that differs from its manifest is damaged and skipped.
"""

import dataclasses
import json
import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from titans_jax import disk, files
from titans_jax.sealed import digests, read_sealed, write_sealed

Which = Literal["last", "best"] | int

_log = logging.getLogger(__name__)


class CheckpointError(Exception):
    """There is no usable checkpoint, or it does not match the requested arrays."""


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The checkpoints in a directory. It keeps the `keep` latest steps and the step of the lowest score.

    Reading changes nothing on disk, so the directory of a running training may be read.
    """

    directory: Path
    keep: int = dataclasses.field(default=2, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "directory", files.expand(self.directory).resolve())
        if self.keep < 1:
            raise ValueError(f"keep={self.keep}: at least one checkpoint must be kept")

    def save(
        self,
        step: int,
        arrays: Mapping[str, Any],
        *,
        meta: Mapping[str, Any] | None = None,
        score: float | None = None,
    ) -> None:
        """Write a step, and delete older steps once it is on disk. It replaces damaged steps from `step` on.

        Args:
          arrays: from item names ("params", "optimizer") to pytrees of arrays, which may be typed PRNG keys.
          meta: any JSON.
          score: lower is better.

        Raises FloatingPointError if an array is not finite, ValueError for an argument that cannot be saved,
        CheckpointError if this or a later step exists, OSError where the disk is full.
        """
        named = {item: by_name(tree, item) for item, tree in arrays.items()}
        if "meta" in named:
            raise ValueError("arrays: the name 'meta' is reserved")
        _check_finite(named, step)
        record = {
            "meta": dict(meta or {}),
            "score": None if score is None else float(score),
            "arrays": {item: {name: kind(leaf) for name, leaf in leaves.items()} for item, leaves in named.items()},
        }
        try:
            json.dumps(record, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ValueError(f"meta and score must be JSON with finite numbers: {error}") from None
        items: dict[str, Any] = {"meta": ocp.args.JsonSave(record)}
        for item, leaves in named.items():
            if stored := {name: leaf for name, leaf in leaves.items() if leaf.size}:  # orbax refuses empty arrays
                items[item] = ocp.args.StandardSave(stored)
        with self._writer() as manager:
            self._make_way(manager, step)
            size, before = sum(leaf.nbytes for leaves in named.values() for leaf in leaves.values()), self.steps()
            kept = f"the last checkpoint is step {before[-1]}" if before else "there is no checkpoint"
            with disk.saving(self.directory, f"step {step}", size, kept):
                saved = manager.save(step, args=ocp.args.Composite(**items))
            if not saved:
                raise CheckpointError(f"{self.directory}: orbax did not save step {step}")
            if jax.process_index() == 0:
                write_sealed(self._manifest(step), self._contents(step))
            _barrier(f"manifest {step}")
            self._delete(manager, self._superseded())

    def restore(
        self, abstract: Mapping[str, Any], *, which: Which = "last"
    ) -> tuple[dict[str, Any], dict[str, Any], int]:
        """Return `(arrays, meta, step)` of the last or best undamaged step, or of the step `which`.

        Args:
          abstract: from item names to pytrees of arrays or jax.ShapeDtypeStruct; items may be left out. Leaves are
            restored with their `sharding`, on any mesh; without one, on the first device.

        Raises CheckpointError if there is no such step, or if its names, shapes or dtypes differ.
        """
        step = self.find(which)
        record = self._record(step)
        named = {item: by_name(tree, item) for item, tree in abstract.items()}
        for item, leaves in named.items():
            saved, where = record["arrays"], f"{self.directory}: step {step}"
            if item not in saved:
                raise CheckpointError(f"{where} holds {sorted(saved)}, not {item!r}")
            require_same(f"{where} does not fit: {item}", leaves, saved[item])
        arrays = {}
        for item, leaves in named.items():
            targets = {name: _target(f"{item}/{name}", leaf) for name, leaf in leaves.items()}
            stored = {name: target for name, target in targets.items() if target.size}
            found = {name: jnp.zeros(t.shape, t.dtype, device=t.sharding) for name, t in targets.items() if not t.size}
            if stored:
                found |= self._read(step, item, ocp.args.StandardRestore(stored))
            arrays[item] = jax.tree.unflatten(jax.tree.structure(abstract[item]), [found[name] for name in leaves])
        return arrays, record["meta"], step

    def meta(self, which: Which = "last") -> dict[str, Any]:
        """The JSON saved with a step, without loading its arrays. Raises CheckpointError as `restore` does."""
        return self._record(self.find(which))["meta"]

    def steps(self) -> list[int]:
        """The complete steps, oldest first, without a check for damage."""
        manifests = (self.directory / "manifests").glob("*.json")
        steps = (int(path.stem) for path in manifests if path.stem.isdecimal())
        return sorted(step for step in steps if (self.directory / str(step)).is_dir())

    def find(self, which: Which = "last") -> int:
        """The number of the last or best step, or `which` itself, after a check of all its files.

        The best is the last one where no step has a score, as in a run that was interrupted early. A damaged step is
        logged as a warning and skipped, unless `which` is a number. Raises CheckpointError if no step is left.
        """
        if which not in ("last", "best") and not isinstance(which, int):
            raise ValueError(f"which={which!r}: expected 'last', 'best' or a step")
        steps = self.steps()[::-1]
        if isinstance(which, int):
            if which not in steps:
                raise CheckpointError(f"{self.directory}: there is no step {which}, only {steps[::-1]}")
            if damage := self._damage(which):
                raise CheckpointError(f"{self.directory}: step {which} is damaged: {damage}; try --which last")
            return which
        sound = filter(self._sound, steps)
        for step in sorted(sound, key=self._score) if which == "best" else sound:
            return step
        among = f" among steps {steps[::-1]}" if steps else ""
        raise CheckpointError(f"{self.directory}: no usable checkpoint{among}")

    def _score(self, step: int) -> float:
        score = self._record(step)["score"]
        return math.inf if score is None else score

    def _sound(self, step: int) -> bool:
        damage = self._damage(step)
        if damage:
            _log.warning("%s: step %d is damaged and skipped: %s", self.directory, step, damage)
        return not damage

    def _damage(self, step: int) -> str | None:
        try:
            written, found = read_sealed(self._manifest(step)), self._contents(step)
            for name in sorted({*written["sha256"], *found["sha256"]}):
                if written["sha256"].get(name) != found["sha256"].get(name):
                    return f"{name} is not what was written"
            return None if written == found else "its manifest is that of another step"
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            return f"{type(error).__name__}: {error}"

    def _manifest(self, step: int) -> Path:
        return self.directory / "manifests" / f"{step}.json"

    def _contents(self, step: int) -> dict[str, Any]:
        return {"step": step, "sha256": digests(self.directory / str(step))}

    def _writer(self) -> ocp.CheckpointManager:
        # Orbax does not delete old steps: it would do so before the new step has a manifest.
        options = ocp.CheckpointManagerOptions(
            todelete_subdir="trash", cleanup_tmp_directories=True, enable_async_checkpointing=False
        )
        return ocp.CheckpointManager(self.directory, options=options)

    def _make_way(self, manager: ocp.CheckpointManager, step: int) -> None:
        finished = self.steps()
        removed = [other for other in manager.all_steps() if other not in finished]
        for other in finished:
            if other >= step:
                if not self._damage(other):
                    raise CheckpointError(f"{self.directory}: cannot save step {step}, step {other} is already there")
                removed.append(other)
        self._delete(manager, removed)

    def _superseded(self) -> list[int]:
        steps = self.steps()
        scores = {}
        for step in steps:
            try:
                scores[step] = self._record(step)["score"]
            except CheckpointError:  # a damaged step is not the best
                continue
        scored = [step for step, score in scores.items() if score is not None]
        best = min(scored, key=lambda step: scores[step], default=None)
        return [step for step in steps[: -self.keep] if step != best]

    def _delete(self, manager: ocp.CheckpointManager, steps: Iterable[int]) -> None:
        _barrier("delete")
        for step in steps:
            if jax.process_index() == 0:
                self._manifest(step).unlink(missing_ok=True)
            manager.delete(step)
        if jax.process_index() == 0:
            try:
                files.remove(self.directory / "trash")
            except OSError as error:  # as NFS keeps files that are being read; the next save tries again
                _log.warning("%s: old checkpoints are still in trash/: %s", self.directory, error)

    def _record(self, step: int) -> dict[str, Any]:
        record = self._read(step, "meta", ocp.args.JsonRestore())
        match record:
            case {"meta": dict(), "score": None | int() | float(), "arrays": dict(arrays)}:
                if all(isinstance(kinds, dict) for kinds in arrays.values()):
                    return record
        raise CheckpointError(f"{self.directory}: step {step}: its meta is not that of a checkpoint")

    def _read(self, step: int, item: str, args: ocp.args.CheckpointArgs) -> Any:
        # Item by item, as a CompositeCheckpointHandler warns about each item that is not restored.
        json_item = isinstance(args, ocp.args.JsonRestore)
        with ocp.Checkpointer(ocp.JsonCheckpointHandler() if json_item else ocp.StandardCheckpointHandler()) as reader:
            try:
                return reader.restore(self.directory / str(step) / item, args=args)
            except jax.errors.JaxRuntimeError:  # such as too little memory on the device
                raise
            except Exception as error:  # whatever orbax, or what it reads with, raises
                reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
                raise CheckpointError(f"{self.directory}: step {step}: {item} cannot be read: {reason}") from None


def by_name(tree: Any, where: str) -> dict[str, Any]:
    """The arrays of a pytree by name, such as "layers/0/w". Raises ValueError, which says where, for other leaves."""
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "value"
        if not hasattr(leaf, "dtype"):
            raise ValueError(f"{where}/{name}: expected an array, not {leaf!r}")
        if name in leaves:
            raise ValueError(f"{where}/{name}: two leaves have this name")
        leaves[name] = leaf
    return leaves


def kind(leaf: Any) -> str:
    """The dtype and the shape of an array, such as "float32[2,3]"."""
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _target(name: str, leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if isinstance(getattr(sharding, "mesh", None), jax.sharding.AbstractMesh):  # eval_shape under jax.set_mesh
        raise ValueError(f"abstract {name}: its sharding names no devices; expected one over a jax.sharding.Mesh")
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _check_finite(named: Mapping[str, Mapping[str, Any]], step: int) -> None:
    for item, leaves in named.items():
        for name, leaf in leaves.items():
            if jnp.issubdtype(leaf.dtype, jnp.inexact) and not jnp.isfinite(leaf).all():
                raise FloatingPointError(f"step {step} was not saved: {item}/{name} is not finite")


def require_same(where: str, wanted: Mapping[str, Any], found: Mapping[str, str]) -> None:
    """Raise CheckpointError unless the kinds that were found are those of the arrays that are wanted, name by name."""
    for name in dict.fromkeys([*wanted, *found]):
        there, here = found.get(name, "missing"), kind(wanted[name]) if name in wanted else "missing"
        if there != here:
            raise CheckpointError(f"{where}/{name} is {there} there, {here} here")


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
