"""A vision-language model of the real kind, tiny and random: its words mean nothing, its place in the rows does."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from configs.errors import MissingWeights
from configs.schema import load
from curation import puppets
from curation.analysis import registry
from curation.analysis.incremental import analyse_changed
from curation.analysis.stages import outdated, parameters
from curation.analysis.video import analyse_video
from curation.config import CurationConfig
from curation.sources.source import Source

IMAGE = "<image>"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """LLaVA with two layers of 32 channels, a byte tokenizer and a chat template, as its folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    folder = tmp_path_factory.mktemp("vlm") / "tiny-llava"
    special = ["<pad>", "<s>", "</s>", "<unk>", IMAGE]
    vocab = {token: n for n, token in enumerate(special + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    words = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    template = (
        "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}"
        "{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        additional_special_tokens=[IMAGE], chat_template=template,
    )  # fmt: skip
    LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
        tokenizer=tokenizer, patch_size=14, vision_feature_select_strategy="default", image_token=IMAGE,
        num_additional_image_tokens=1, chat_template=template,
    ).save_pretrained(folder)  # fmt: skip
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(image_size=28, patch_size=14, **small),
            text_config=LlamaConfig(vocab_size=len(vocab), num_key_value_heads=2, **small),
            image_token_index=vocab[IMAGE],
        )
    ).save_pretrained(folder)
    return folder


def config(*overrides: str) -> CurationConfig:
    return load("tiny", ["sync.required=false", "captions.max_tokens=12", *overrides]).curation


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    puppets.make(folder / "made", 1, 3, config().puppets, False)
    file = folder / "alone.mp4"  # without the caption beside it
    shutil.copy(next((folder / "made").glob("*.mp4")), file)
    return file


def test_the_model_describes_clips_that_nobody_described(model: Path, video: Path) -> None:
    cfg = config("captions.kind=vlm", f"captions.model={model}")
    loaded = registry.load(cfg)
    first, second = (analyse_video(Source(str(video)), cfg, backends=loaded)[1] for _ in range(2))
    assert first and [c.captions for c in first] == [c.captions for c in second]
    assert all(c.captions and c.captions[0].source == "vlm:tiny-llava" for c in first)
    (_, told) = analyse_video(Source(str(video), caption="A man at a desk."), cfg, backends=loaded)
    assert told and all(c.captions and c.captions[0].source == "manifest" for c in told)


def test_a_catalog_captioned_later_is_as_if_it_had_been_at_once(model: Path, video: Path) -> None:
    before, now = config(), config("captions.kind=vlm", f"captions.model={model}")
    run, source = outdated(parameters(before), parameters(now)), Source(str(video))
    assert run == {"captions"}
    old = analyse_video(source, before, backends=registry.load(before))
    assert [caption.source for caption in old[1][0].captions or ()] == ["template"]
    loaded = registry.load(now)
    later = analyse_changed(source, now, backends=loaded, run=run, before=old)[1]
    assert later == analyse_video(source, now, backends=loaded)[1]


def test_a_missing_model_is_named() -> None:
    with pytest.raises(MissingWeights, match="no-such-model"):
        registry.load(config("captions.kind=vlm", "captions.model=/no-such-model"))
