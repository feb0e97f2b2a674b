"""Tokenizer classes of ``transformers`` 5 that do not use all of ``tokenizer.json``.

``AutoTokenizer`` chooses a class by ``tokenizer_class`` and by the family of the model. Most
classes use ``tokenizer.json`` as it is. Those in :data:`REBUILT` take from it only the vocabulary,
the merges and, with two exceptions, the post-processor; they write the other parts themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

GENERIC = (
    "PreTrainedTokenizerFast",
    "TokenizersBackend",
    "PreTrainedTokenizer",
    "PythonBackend",
    "BloomTokenizer",
)
"""Classes that use ``tokenizer.json`` as it is."""
FAMILY_CLASSES = {
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n"), "GemmaTokenizer"),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), "Qwen2Tokenizer"),
    **dict.fromkeys(("cohere", "cohere2"), "CohereTokenizer"),
    **dict.fromkeys(("gpt2", "gpt_neo", "gptj", "opt", "phi", "starcoder2"), "GPT2Tokenizer"),
    **dict.fromkeys(("gpt_neox", "olmo", "olmoe", "mpt"), "GPTNeoXTokenizer"),
    **dict.fromkeys(("ministral", "mistral", "mistral3", "mixtral"), "TokenizersBackend"),
    **dict.fromkeys(("glm", "glm4", "granite", "olmo2", "olmo3", "phi3"), "TokenizersBackend"),
    "code_llama": "CodeLlamaTokenizer",
}
"""Class that ``transformers`` registers for a family; it overrides some published classes."""
FAMILIES_WITH_WRONG_CLASS = ("qwen2", "phi3")
"""Families whose published ``tokenizer_class`` is replaced by the registered class."""
QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Regular expression by which the tokenizer of Qwen2 splits words."""
Config = Mapping[str, Any]
Vocabulary = dict[str, int]
Merges = list[tuple[str, str]]


class RebuiltClass(NamedTuple):
    """A tokenizer class that writes its own pipeline.

    Attributes:
        build: function of vocabulary, merges and configuration that builds the tokenizer.
        special_texts: special tokens that the class has unless the configuration names others.
        resets_special: whether the class adds its special tokens again, with default properties.
        begins: whether raw text begins with ``bos_token``; None if ``tokenizer.json`` decides.
    """

    build: Callable[[Vocabulary, Merges, Config], tokenizers.Tokenizer]
    special_texts: dict[str, str]
    resets_special: bool = False
    begins: bool | None = None


def choose_class(config: Config, model_config: Config, tokenizer_json: str) -> str | None:
    """Return the name of the class that ``AutoTokenizer`` loads.

    Args:
        config: the document of ``tokenizer_config.json``.
        model_config: the document of ``config.json``; empty if there is none.
        tokenizer_json: content of ``tokenizer.json``.

    Returns:
        A name in :data:`REBUILT`, None for a class that uses ``tokenizer.json`` as it is, or the
        name of a class that is not supported.

    Examples:
        >>> choose_class({"tokenizer_class": "LlamaTokenizerFast"}, {"model_type": "llama"}, "{}")
        'LlamaTokenizer'
        >>> choose_class({"tokenizer_class": "LlamaTokenizer"}, {"model_type": "mistral"}, "{}")
    """
    family = model_config.get("model_type")
    named = config.get("tokenizer_class") or model_config.get("tokenizer_class")
    declared = None if named is None else str(named).removesuffix("Fast")
    registered = FAMILY_CLASSES.get(cast("str", family))
    auto_map = config.get("auto_map")
    has_code = auto_map.get("AutoTokenizer") if isinstance(auto_map, dict) else auto_map
    chosen = declared or registered
    if not has_code:
        is_mistral = family in ("ministral", "mistral", "mistral3", "mixtral")
        wrong = family in FAMILIES_WITH_WRONG_CLASS
        # Llama 3 declares the class of Llama 2, which would write another pre-tokenizer.
        is_byte_level = '"ByteLevel"' in tokenizer_json
        if declared == "LlamaTokenizer" and is_byte_level and not (is_mistral or wrong):
            return None
        if declared is not None and registered is not None and declared != registered:
            if registered == "TokenizersBackend":
                return None
            chosen = registered if wrong else declared
    generic = (None, *(name.removesuffix("Fast") for name in GENERIC))
    return None if chosen in generic else chosen


def set_post_processor(
    fast: tokenizers.Tokenizer, rebuilt: RebuiltClass, stored: Any, begin: str
) -> None:
    """Let a tokenizer write the tokens around a raw text that its class writes.

    Args:
        fast: the tokenizer; it is changed.
        rebuilt: the class.
        stored: post-processor of ``tokenizer.json``; None if it has none.
        begin: text of the token that begins a sequence; empty if there is none.

    Examples:
        >>> fast = tokenizers.Tokenizer(models.BPE())
        >>> set_post_processor(fast, REBUILT["GPTNeoXTokenizer"], None, "")
        >>> fast.post_processor is None
        True
    """
    if rebuilt.begins is None:
        if stored is not None:
            fast.post_processor = stored
    elif rebuilt.begins and fast.token_to_id(begin) is not None:
        fast.post_processor = processors.TemplateProcessing(
            single=[begin, "$A"], special_tokens=[(begin, fast.token_to_id(begin))]
        )


def _bpe(vocabulary: Vocabulary, merges: Merges, **options: Any) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges, **options))


def _adds_space(config: Config, default: bool) -> bool:
    value = config.get("add_prefix_space")
    return default if value is None else bool(value)


def _llama(vocabulary: Vocabulary, merges: Merges, config: Config) -> tokenizers.Tokenizer:
    fast = _bpe(vocabulary, merges, fuse_unk=True, byte_fallback=True)
    adds_space = _adds_space(config, default=True)
    scheme = ("always" if config.get("legacy", False) else "first") if adds_space else "never"
    fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    fast.decoder = _space_decoder(strips=adds_space)
    return fast


def _code_llama(vocabulary: Vocabulary, merges: Merges, config: Config) -> tokenizers.Tokenizer:
    unknown = str(config.get("unk_token", "<unk>"))
    fast = _bpe(vocabulary, merges, fuse_unk=True, byte_fallback=True, unk_token=unknown)
    adds_space = _adds_space(config, default=True)
    scheme = "first" if adds_space else "never"
    fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    fast.decoder = _space_decoder(strips=adds_space)
    return fast


def _gemma(vocabulary: Vocabulary, merges: Merges, config: Config) -> tokenizers.Tokenizer:
    unknown = str(config.get("unk_token", "<unk>"))
    fast = _bpe(vocabulary, merges, fuse_unk=True, byte_fallback=True, unk_token=unknown)
    fast.normalizer = normalizers.Replace(" ", "▁")
    fast.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    fast.decoder = _space_decoder(strips=False)
    return fast


def _space_decoder(*, strips: bool) -> decoders.Decoder:
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strips else steps)


def _byte_level(
    vocabulary: Vocabulary,
    merges: Merges,
    pre_tokenizer: pre_tokenizers.PreTokenizer,
    *,
    normalized: bool,
) -> tokenizers.Tokenizer:
    affixes = {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    fast = _bpe(vocabulary, merges, fuse_unk=False, **affixes)
    if normalized:
        fast.normalizer = normalizers.NFC()
    fast.pre_tokenizer = pre_tokenizer
    fast.decoder = decoders.ByteLevel()
    return fast


def _qwen2(vocabulary: Vocabulary, merges: Merges, config: Config) -> tokenizers.Tokenizer:
    adds_space = _adds_space(config, default=False)
    pieces = pre_tokenizers.Split(tokenizers.Regex(QWEN2_PATTERN), "isolated")
    letters = pre_tokenizers.ByteLevel(add_prefix_space=adds_space, use_regex=False)
    steps = pre_tokenizers.Sequence([pieces, letters])
    return _byte_level(vocabulary, merges, steps, normalized=True)


def _gpt2(vocabulary: Vocabulary, merges: Merges, config: Config) -> tokenizers.Tokenizer:
    step = pre_tokenizers.ByteLevel(add_prefix_space=_adds_space(config, default=False))
    return _byte_level(vocabulary, merges, step, normalized=False)


def _gpt_neox(vocabulary: Vocabulary, merges: Merges, config: Config) -> tokenizers.Tokenizer:
    step = pre_tokenizers.ByteLevel(add_prefix_space=_adds_space(config, default=False))
    return _byte_level(vocabulary, merges, step, normalized=True)


def _cohere(vocabulary: Vocabulary, merges: Merges, config: Config) -> tokenizers.Tokenizer:
    letters = pre_tokenizers.ByteLevel(add_prefix_space=_adds_space(config, default=False))
    steps = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), letters])
    return _byte_level(vocabulary, merges, steps, normalized=True)


_SENTENCES = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
_END_OF_TEXT = "<|endoftext|>"
REBUILT: dict[str, RebuiltClass] = {
    "LlamaTokenizer": RebuiltClass(_llama, _SENTENCES),
    "CodeLlamaTokenizer": RebuiltClass(
        _code_llama,
        {
            **_SENTENCES,
            "prefix_token": "▁<PRE>",
            "middle_token": "▁<MID>",
            "suffix_token": "▁<SUF>",
            "eot_token": "▁<EOT>",
            "fill_token": "<FILL_ME>",
        },
        begins=True,
    ),
    "GemmaTokenizer": RebuiltClass(
        _gemma,
        {
            "unk_token": "<unk>",
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        },
    ),
    "Qwen2Tokenizer": RebuiltClass(
        _qwen2,
        dict.fromkeys(("unk_token", "eos_token", "pad_token"), _END_OF_TEXT),
        resets_special=True,
    ),
    "GPT2Tokenizer": RebuiltClass(
        _gpt2, dict.fromkeys(("unk_token", "bos_token", "eos_token"), _END_OF_TEXT)
    ),
    "GPTNeoXTokenizer": RebuiltClass(
        _gpt_neox,
        {
            **dict.fromkeys(("unk_token", "bos_token", "eos_token"), _END_OF_TEXT),
            "pad_token": "<|padding|>",
        },
        begins=False,
    ),
    "CohereTokenizer": RebuiltClass(
        _cohere,
        {
            "unk_token": "<UNK>",
            "bos_token": "<BOS_TOKEN>",
            "eos_token": "<|END_OF_TURN_TOKEN|>",
            "pad_token": "<PAD>",
            "cls_token": "<CLS>",
            "sep_token": "<SEP>",
            "mask_token": "<MASK_TOKEN>",
        },
    ),
}
"""Supported classes that write their own pipeline, by name."""
