"""Models of other people, with random weights: the same outputs and gradients after swap_conv1d.

Needs ``pip install .[models]``; without it these tests say so and skip.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from convlm_kernels import Conv1d, swap_conv1d

transformers = pytest.importorskip("transformers", reason="pip install .[models]")
pytorch_tcn = pytest.importorskip("pytorch_tcn", reason="pip install .[models]")

Build = Callable[[], tuple[nn.Module, dict[str, Tensor]]]


class Model(NamedTuple):
    why: str
    build: Build
    fewest: int  # layers that must have been replaced
    left: bool = False  # whether it also has subclasses of torch's layer, which are left alone


def noise(*shape: int) -> Tensor:
    return torch.randn(shape)


SPEECH = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=48,
    conv_dim=(24, 24, 24),
    conv_kernel=(10, 3, 2),
    conv_stride=(5, 2, 2),
    num_feat_extract_layers=3,
    num_conv_pos_embeddings=16,
    num_conv_pos_embedding_groups=4,
)


def wav2vec2() -> tuple[nn.Module, dict[str, Tensor]]:
    config = transformers.Wav2Vec2Config(**SPEECH, do_stable_layer_norm=True)
    return transformers.Wav2Vec2Model(config), {"input_values": noise(2, 1600)}


def hubert() -> tuple[nn.Module, dict[str, Tensor]]:
    config = transformers.HubertConfig(**SPEECH)
    return transformers.HubertModel(config), {"input_values": noise(2, 1600)}


def whisper() -> tuple[nn.Module, dict[str, Tensor]]:
    config = transformers.WhisperConfig(
        vocab_size=50,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_mel_bins=20,
        max_source_positions=50,
        max_target_positions=20,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    inputs = {"input_features": noise(2, 20, 100), "decoder_input_ids": torch.ones(2, 3).long()}
    return transformers.WhisperModel(config), inputs


def encodec() -> tuple[nn.Module, dict[str, Tensor]]:
    config = transformers.EncodecConfig(
        num_filters=4, hidden_size=16, codebook_size=32, codebook_dim=16, upsampling_ratios=[4, 2]
    )
    return transformers.EncodecModel(config).encoder, {"hidden_states": noise(2, 1, 640)}


def dac() -> tuple[nn.Module, dict[str, Tensor]]:
    config = transformers.DacConfig(
        encoder_hidden_size=8,
        downsampling_ratios=[2, 4],
        decoder_hidden_size=16,
        upsampling_ratios=[4, 2],
        n_codebooks=2,
        codebook_size=16,
        codebook_dim=4,
    )
    return transformers.DacModel(config).encoder, {"hidden_state": noise(2, 1, 320)}


def vits() -> tuple[nn.Module, dict[str, Tensor]]:
    config = transformers.VitsConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=24,
        flow_size=16,
        spectrogram_bins=9,
        upsample_initial_channel=16,
        upsample_rates=[4, 2],
        upsample_kernel_sizes=[8, 4],
        resblock_kernel_sizes=[3, 5],
        resblock_dilation_sizes=[[1, 3], [1, 3]],
        prior_encoder_num_flows=2,
        prior_encoder_num_wavenet_layers=2,
        posterior_encoder_num_wavenet_layers=2,
    )
    decoder = transformers.VitsModel(config).decoder
    return decoder, {"spectrogram": noise(2, 16, 20)}


def hifi_gan() -> tuple[nn.Module, dict[str, Tensor]]:
    config = transformers.SpeechT5HifiGanConfig(
        model_in_dim=12,
        upsample_initial_channel=16,
        upsample_rates=[4, 2],
        upsample_kernel_sizes=[8, 4],
        resblock_kernel_sizes=[3, 7],
        resblock_dilation_sizes=[[1, 3, 5], [1, 3, 5]],
    )
    return transformers.SpeechT5HifiGan(config), {"spectrogram": noise(2, 20, 12)}


def mamba() -> tuple[nn.Module, dict[str, Tensor]]:
    config = transformers.MambaConfig(
        vocab_size=40, hidden_size=24, state_size=4, num_hidden_layers=2, use_mambapy=False
    )
    return transformers.MambaModel(config), {"input_ids": torch.randint(40, (2, 13))}


def tcn() -> tuple[nn.Module, dict[str, Tensor]]:
    model = pytorch_tcn.TCN(6, [12, 12, 8], kernel_size=3, use_norm="weight_norm", dropout=0.0)
    return model, {"x": noise(3, 6, 40)}


MODELS = {
    "wav2vec2": Model("strided feature extractor, weight_norm over taps, groups", wav2vec2, 4),
    "hubert": Model("the same extractor with group norm", hubert, 4),
    "whisper": Model("two layers over mel frames", whisper, 2),
    "encodec": Model("causal with reflected padding, weight_norm", encodec, 6),
    "dac": Model("dilated residual units between strided layers", dac, 10),
    "vits": Model("vocoder of a text-to-speech model", vits, 10),
    "hifi_gan": Model("multi-receptive-field vocoder, dilations 1, 3, 5", hifi_gan, 26),
    "mamba": Model("depthwise, causal by cutting off what padding adds", mamba, 2),
    "tcn": Model("temporal convolutional network", tcn, 0, left=True),
}


def outputs_and_gradients(model: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor | None]:
    y = model(**inputs)
    if not isinstance(y, Tensor):
        y = y[0]
    weights = torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype)
    leaves = [p for p in model.parameters() if p.requires_grad]
    return [y.detach(), *torch.autograd.grad(y, leaves, weights, allow_unused=True)]


def errors(actual: list[Tensor | None], exact: list[Tensor | None]) -> Tensor:
    """The largest error of each tensor, in roundings of its own largest value."""
    assert [t is None for t in actual] == [t is None for t in exact]
    pairs = [(a, e) for a, e in zip(actual, exact, strict=True) if a is not None and e is not None]
    units = [torch.finfo(torch.float32).eps * e.abs().max().clamp(min=1e-30) for _, e in pairs]
    return torch.stack(
        [(a.double() - e).abs().max() / unit for (a, e), unit in zip(pairs, units, strict=True)]
    )


@pytest.mark.parametrize("name", MODELS)
def test_the_same_after_swap(name: str) -> None:
    """On average no further from the model in float64 than twice torch's own layers are."""
    expected = MODELS[name]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, inputs = expected.build()
    model.eval()
    exact_model = copy.deepcopy(model).double()
    exact_inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    exact = outputs_and_gradients(exact_model, exact_inputs)
    theirs = outputs_and_gradients(model, inputs)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        replaced = swap_conv1d(model)
    assert len(replaced) >= expected.fewest
    assert any("left alone" in str(w.message) for w in caught) == expected.left
    assert sum(isinstance(m, Conv1d) for m in model.modules()) == len(set(replaced))
    own = errors(outputs_and_gradients(model, inputs), exact)
    torchs = errors(theirs, exact)
    # One sum may be unlucky; all of them are not.
    assert (own <= 4 * torchs + 16).all()
    assert own.mean() <= 2 * torchs.mean()
