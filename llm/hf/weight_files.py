"""Which safetensors file of a model folder holds which tensor.

A folder has ``model.safetensors``, or ``model.safetensors.index.json`` and the files that it names.
Where two files could both be meant, the folder is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from llm.data.model_folder import model_file, read_json_object

SAFE_WEIGHTS_NAME = "model.safetensors"
SAFE_WEIGHTS_INDEX_NAME = "model.safetensors.index.json"
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
CONVERT = (
    'python -c "from transformers import AutoModelForCausalLM as M; '
    "M.from_pretrained('{folder}').save_pretrained('CONVERTED')\""
)


def read_index(folder: Path) -> dict[str, Path] | None:
    """Read the index of a folder.

    Args:
        folder: folder of the model.

    Returns:
        Files by tensor name; None if the folder has ``model.safetensors`` and no index.

    Raises:
        ValueError: if the folder has no weights, or the index and ``model.safetensors`` are both
            there, or shards are there that the index does not name.

    Examples:
        >>> read_index(Path("model"))["lm_head.weight"].name  # doctest: +SKIP
        'model-00002-of-00002.safetensors'
    """
    index, single = folder / SAFE_WEIGHTS_INDEX_NAME, folder / SAFE_WEIGHTS_NAME
    shards = sorted(
        path.name for path in folder.glob("*.safetensors") if SHARD.fullmatch(path.name)
    )
    if not index.exists():
        if not single.exists():
            raise ValueError(_no_weights(folder, shards))
        if shards:
            raise ValueError(
                f"{folder} holds {SAFE_WEIGHTS_NAME} and {shards[0]}, and no index says which is "
                "meant: remove one of them"
            )
        return None
    listed = read_json_object(folder, SAFE_WEIGHTS_INDEX_NAME).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(v, str) for v in listed.values()):
        raise ValueError(f"{index}: `weight_map` must map tensors to file names")
    # Only the last component counts: an index must not lead out of its folder.
    names = {tensor: Path(name).name for tensor, name in listed.items()}
    files = set(names.values())
    if not files:
        raise ValueError(f"{index}: `weight_map` must name at least one tensor")
    if single.exists() and SAFE_WEIGHTS_NAME not in files:
        raise ValueError(
            f"{folder} holds {SAFE_WEIGHTS_NAME}, and {SAFE_WEIGHTS_INDEX_NAME} that names other "
            "files: remove the one that is not meant"
        )
    extra = [name for name in shards if name not in files]
    if extra:
        raise ValueError(
            f"{folder} holds {extra[0]}, which {SAFE_WEIGHTS_INDEX_NAME} does not name: remove it, "
            "or write the index anew"
        )
    return {tensor: model_file(folder, name) for tensor, name in names.items()}


def locate_tensors(
    index: Mapping[str, Path] | None, contents: Mapping[Path, set[str]], folder: Path
) -> dict[str, Path]:
    """Return the file of every tensor.

    Args:
        index: see :func:`read_index`.
        contents: names of the tensors in every file.
        folder: folder of the model, for messages.

    Returns:
        Files by tensor name.

    Raises:
        ValueError: if two files hold a tensor, or the index and the files differ.

    Examples:
        >>> locate_tensors(None, {Path("model.safetensors"): {"norm"}}, Path("model"))["norm"].name
        'model.safetensors'
    """
    found: dict[str, Path] = {}
    for path, names in contents.items():
        for name in sorted(names):
            if name in found:
                raise ValueError(
                    f"{folder}: tensor {name} is in {found[name].name} and in {path.name}: remove "
                    "one of them"
                )
            found[name] = path
    if index is None:
        return found
    where = folder / SAFE_WEIGHTS_INDEX_NAME
    for name, path in sorted(index.items()):
        if name not in found:
            raise ValueError(f"{where} names tensor {name} in {path.name}, which does not hold it")
        if found[name] != path:
            raise ValueError(
                f"{where} names tensor {name} in {path.name}, but it is in {found[name].name}"
            )
    for name, path in sorted(found.items()):
        if name not in index:
            raise ValueError(f"{where} does not name tensor {name}, which {path.name} holds")
    return found


def unread_files(folder: Path, read: set[Path]) -> list[str]:
    """Return the names of weight files that are passed over.

    Args:
        folder: folder of the model.
        read: the files that are read.

    Returns:
        Names, sorted.

    Examples:
        >>> unread_files(Path("model"), {Path("model/model.safetensors")})  # doctest: +SKIP
        ['pytorch_model.bin']
    """
    suffixes = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")
    kept = {path.name for path in read} | {"training_args.bin"}
    paths = (path for path in folder.glob("*") if path.is_file())
    return sorted(
        path.name for path in paths if path.name.endswith(suffixes) and path.name not in kept
    )


def _no_weights(folder: Path, shards: list[str]) -> str:
    if shards:
        return f"{folder} holds {shards[0]}, but not its index {SAFE_WEIGHTS_INDEX_NAME}: add it"
    others = [name for name in unread_files(folder, set()) if not name.endswith(".safetensors")]
    found = f" ({others[0]} is there)" if others else ""
    return (
        f"{folder} has neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}; other "
        f"formats{found} (pickled .bin files) are never read: convert them to safetensors, with "
        f"`{CONVERT.format(folder=folder)}`"
    )
