"""The models: shapes, receptive fields, and the CNN and the MLP being one function."""

from functools import partial

import pytest
import torch

from convlm_kernels.lm import CNN, MLP, DilatedCNN, contexts, evaluate, load_words, make_data
from convlm_kernels.lm.models import MODELS, CharModel, build_model, loss_of

BUILDS = [
    pytest.param(CNN, {}, id="cnn-seed"),
    pytest.param(CNN, {"vocab": 5, "context": 3, "embedding": 2}, id="cnn-context3"),
    pytest.param(CNN, {"fused": False}, id="cnn-convolved"),
    pytest.param(DilatedCNN, {"fused": False}, id="dilated-convolved"),
    pytest.param(MLP, {"vocab": 5, "context": 3, "embedding": 2}, id="mlp-context3"),
    pytest.param(DilatedCNN, {}, id="dilated-seed"),
    *(
        pytest.param(DilatedCNN, {"context": c, "hidden": 6, "embedding": 3}, id=f"dilated-c{c}")
        for c in (2, 4, 16)
    ),
]


@pytest.mark.parametrize(("kind", "sizes"), BUILDS)
def test_logits_and_receptive_field(kind: type[CharModel], sizes):
    """A prediction depends on each of its own characters, and on no others."""
    torch.manual_seed(0)
    model = kind(**sizes).double()
    assert {**model.sizes(), **{k: v for k, v in sizes.items() if k != "fused"}} == model.sizes()
    field = model.receptive_field
    length = 2 * field + 3
    tokens = torch.randint(model.vocab, (2, length))
    logits = model(tokens)
    assert logits.shape == (2, model.vocab, length - field + 1)
    for position in range(length):
        other = tokens.clone()
        other[1, position] = (tokens[1, position] + 1) % model.vocab
        changed = ((model(other) - logits).abs() > 1e-9).any(1)
        first, last = position - field + 1, position
        expected = torch.zeros_like(changed)
        expected[1, max(0, first) : last + 1] = True
        assert torch.equal(changed, expected)


def test_the_seeds_shapes():
    shapes = {name: tuple(p.shape) for name, p in DilatedCNN().named_parameters()}
    assert shapes == {
        "embedding.weight": (28, 10),
        "layers.0.weight": (100, 1, 20),
        "layers.0.bias": (100,),
        "layers.1.weight": (100, 100, 2),
        "layers.1.bias": (100,),
        "layers.2.weight": (28, 100, 2),
        "layers.2.bias": (28,),
    }
    layers = [(c.stride, c.dilation, c.activation) for c in DilatedCNN().layers]
    assert layers == [((10,), (1,), "tanh"), ((1,), (2,), "tanh"), ((1,), (4,), None)]
    assert CNN().conv.weight.shape == (28, 1, 80)
    assert MLP().linear.weight.shape == (28, 80)


@pytest.mark.parametrize("kind", ["cnn", "dilated"])
def test_own_layers_equal_torch_layers(kind):
    torch.manual_seed(0)
    ours = build_model(kind, {"vocab": 28, "context": 8, "embedding": 10})
    peer = build_model(kind, ours.sizes(), backend="torch")
    peer.load_state_dict(ours.state_dict())
    tokens, y = torch.randint(28, (4, 23)), torch.randint(28, (4, 16))
    for model in (ours, peer):
        loss_of(model(tokens), y).backward()
    torch.testing.assert_close(ours(tokens), peer(tokens), rtol=1e-5, atol=1e-5)
    for mine, theirs in zip(ours.parameters(), peer.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 32])
@pytest.mark.parametrize("kind", [CNN, DilatedCNN])
def test_fused_is_the_same_function(kind: type[CharModel], rows: int, dtype: torch.dtype):
    """Losses and gradients, on few positions too, where nothing is looked up."""
    torch.manual_seed(0)
    fused, plain = kind().to(dtype), kind(fused=False).to(dtype)
    plain.load_state_dict(fused.state_dict())
    x, y = torch.randint(28, (rows, 23)), torch.randint(28, (rows, 16))
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    close = partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance)
    close(fused(x), plain(x))
    for reduction in ("mean", "sum", "none"):
        close(fused.loss(x, y, reduction), plain.loss(x, y, reduction))
    everything = torch.arange(rows)
    close(fused.training_step(x, y, everything), plain.training_step(x, y, everything))
    gradients = [p.grad.clone() for p in fused.parameters()]
    close(gradients, [p.grad for p in plain.parameters()])
    fused.training_step(x, y, everything)  # takes the place of what is there
    assert all(map(torch.equal, gradients, (p.grad for p in fused.parameters())))
    (gradient,) = torch.autograd.grad(fused.loss(x, y), fused.embedding.weight)
    close(gradient, plain.embedding.weight.grad)


def test_mlp_equals_cnn():
    """The same loss from the same parameters, over rows and over contexts one by one."""
    torch.manual_seed(0)
    data = make_data(load_words())
    cnn = CNN(vocab=len(data.alphabet))
    mlp = MLP.from_cnn(cnn)
    stop = data.alphabet.stop
    for split in (data.train, data.val):
        a, b = evaluate(cnn, split, stop), evaluate(mlp, split, stop)
        assert abs(a.all_positions - b.all_positions) < 1e-5
        assert abs(a.real_predictions - b.real_predictions) < 1e-5
        x, y = contexts(split, data.context)
        with torch.no_grad():
            assert abs(loss_of(mlp(x), y).item() - a.all_positions) < 1e-5


def test_mlp_from_cnn_is_a_copy():
    cnn = CNN(vocab=5, context=3, embedding=2).double()
    mlp = MLP.from_cnn(cnn)
    assert mlp.sizes() == cnn.sizes()
    assert mlp.linear.weight.dtype == torch.float64
    before = mlp.linear.weight.clone()
    with torch.no_grad():
        cnn.conv.weight.zero_()
    assert torch.equal(mlp.linear.weight, before)


@pytest.mark.parametrize("kind", MODELS)
def test_bad_tokens(kind):
    model = build_model(kind, {"vocab": 5, "context": 4, "embedding": 2})
    with pytest.raises(ValueError, match=r"length 3, but .* context of 4"):
        model(torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"must be \(batch, length\), got shape \(4,\)"):
        model(torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize("context", [-2, 0, 1, 3, 12])
def test_dilated_context_is_a_power_of_two(context):
    with pytest.raises(ValueError, match=f"power of two from 2 on, got {context}"):
        DilatedCNN(context=context)


@pytest.mark.parametrize("size", ["vocab", "context", "embedding"])
def test_sizes_are_positive(size):
    with pytest.raises(ValueError, match=f"{size} must be at least 1, got 0"):
        CNN(**{size: 0})
    with pytest.raises(ValueError, match="hidden must be at least 1, got 0"):
        DilatedCNN(hidden=0)


def test_unknown_model():
    with pytest.raises(ValueError, match="one of dilated, cnn, mlp; got 'rnn'"):
        build_model("rnn", {})
