"""pocket-gpt's tokenizer: one word, one token."""

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from pedagogic_peft.course.pocket.stories import vocabulary

SPECIAL_TOKENS = {
    "pad_token": "<pad>",
    "bos_token": "<bos>",
    "eos_token": "<eos>",
    "unk_token": "<unk>",
}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the word-level tokenizer of the story world from its grammar.

    Text is split at white space; each word of :func:`~pedagogic_peft.course.pocket.stories.vocabulary` is
    one token, any other word is ``<unk>``. A text begins with ``<bos>``; ``<eos>`` is left to whoever
    writes whole documents. Padding goes to the right.
    """
    words = [*SPECIAL_TOKENS.values(), *vocabulary()]
    ids = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", ids["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **SPECIAL_TOKENS,
    )
