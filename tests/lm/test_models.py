"""The models: shapes, receptive fields, and the CNN and the MLP being one function."""

import pickle
from copy import deepcopy
from functools import partial

import pytest
import torch

from convlm_kernels import sgd_step
from convlm_kernels.lm import CNN, MLP, DilatedCNN, contexts, evaluate, load_words, make_data
from convlm_kernels.lm.char_model import CharModel, loss_of
from convlm_kernels.lm.models import MODELS, build_model

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
def test_logits_and_their_context(kind: type[CharModel], sizes):
    """A prediction depends on each of its own characters, and on no others."""
    torch.manual_seed(0)
    model = kind(**sizes).double()
    assert {**model.sizes(), **{k: v for k, v in sizes.items() if k != "fused"}} == model.sizes()
    field = model.context
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
    drawn = torch.arange(rows).flip(0)
    close(fused.training_step(x, y, drawn), plain.training_step(x, y))
    gradients = [p.grad.clone() for p in fused.parameters()]
    close(gradients, [p.grad for p in plain.parameters()])
    fused.training_step(x, y, drawn)  # takes the place of what is there
    assert all(map(torch.equal, gradients, (p.grad for p in fused.parameters())))
    (gradient,) = torch.autograd.grad(fused.loss(x, y), fused.embedding.weight)
    close(gradient, plain.embedding.weight.grad)


def twins(kind: type[CharModel], sizes, dtype: torch.dtype) -> tuple[CharModel, CharModel]:
    torch.manual_seed(0)
    model = kind(**sizes).to(dtype)
    return model, deepcopy(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("kind", "sizes"), BUILDS)
def test_a_step_of_sgd(kind: type[CharModel], sizes, dtype: torch.dtype):
    """The same bits as by way of the gradients, for some rows and for all."""
    model, other = twins(kind, sizes, dtype)
    tokens = torch.randint(model.vocab, (40, 2 * model.context))
    x, y = tokens[:, :-1], tokens[:, model.context :]
    for lr, rows in ((0.5, torch.randint(40, (32,))), (0.1, None)):
        versions = [p._version for p in model.parameters()]
        loss = model.sgd_step(x, y, lr, rows)
        assert torch.equal(loss, other.training_step(x, y, rows))
        sgd_step(other.parameters(), lr)
        assert all(map(torch.equal, model.parameters(), other.parameters()))
        assert all(p._version > v for p, v in zip(model.parameters(), versions, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("kind", "sizes"), BUILDS)
def test_several_steps_of_sgd_in_a_call(kind: type[CharModel], sizes, dtype: torch.dtype):
    """The same bits as one by one, up to a loss that is not finite."""
    model, other = twins(kind, sizes, dtype)
    broken = model.vocab - 1  # a token of the last row alone
    tokens = torch.randint(broken, (40, 2 * model.context))
    tokens[39] = broken
    x, y = tokens[:, :-1], tokens[:, model.context :]
    for rows in torch.randint(39, (5, 32)), torch.randint(39, (32, 3)).T, torch.zeros(0, 4).long():
        versions = [p._version for p in model.parameters()]
        losses = model.sgd_step(x, y, 0.5, rows)
        expected = [other.sgd_step(x, y, 0.5, batch) for batch in rows]
        assert losses.shape == rows.shape[:1]
        assert losses.tolist() == [loss.item() for loss in expected]
        assert losses.dtype == torch.promote_types(dtype, torch.float32)
        assert all(map(torch.equal, model.parameters(), other.parameters()))
        grown = [p._version > v for p, v in zip(model.parameters(), versions, strict=True)]
        assert all(grown) or not len(rows)
    with torch.no_grad():
        for embedding in (model.embedding, other.embedding):
            embedding.weight[broken] = torch.inf
    rows = torch.tensor([[0, 1], [39, 2], [3, 4]])
    assert model.sgd_step(x, y, 0.5, rows).isfinite().tolist() == [True, False, False]
    other.sgd_step(x, y, 0.5, rows[0])
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("kind", [CNN, DilatedCNN, MLP])
def test_a_step_of_sgd_leaves_what_is_frozen_and_all_where_the_loss_is_not_finite(kind):
    model = kind()
    x, y = torch.randint(28, (32, 23)), torch.randint(28, (32, 16))
    model.embedding.weight.requires_grad_(False)
    before = deepcopy(model.state_dict())
    model.sgd_step(x, y, 0.1)
    changed = [n for n, value in model.state_dict().items() if not torch.equal(value, before[n])]
    assert changed == [name for name in before if name != "embedding.weight"]
    model.embedding.weight.requires_grad_(True)
    with torch.no_grad():
        next(model.parameters())[x[0, 0]] = torch.inf
    before = deepcopy(model.state_dict())
    assert not model.sgd_step(x, y, 0.1).isfinite()
    assert all(torch.equal(value, before[n]) for n, value in model.state_dict().items())


def _in_other_memory(model: CharModel) -> None:
    for p in model.parameters():
        p.data = p.data.clone()


def _same_memory(model: CharModel) -> None:
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(p.data))


def _other_parameters(model: CharModel) -> None:
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            setattr(module, name, torch.nn.Parameter(p.detach() + 0.1))


@pytest.mark.parametrize("kind", [CNN, DilatedCNN])
@pytest.mark.parametrize(
    "change", [_in_other_memory, _same_memory, _other_parameters, CharModel.double, deepcopy]
)
def test_a_step_after_parameters_were_replaced(kind, change):
    model = kind()
    x, y = torch.randint(28, (32, 23)), torch.randint(28, (32, 16))
    model.sgd_step(x, y, 0.5)
    model = change(model) or model
    versions = [p._version for p in model.parameters()]
    fresh = kind().to(model.embedding.weight)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(model.sgd_step(x, y, 0.5), fresh.sgd_step(x, y, 0.5))
    assert all(map(torch.equal, model.parameters(), fresh.parameters()))
    assert all(p._version > v for p, v in zip(model.parameters(), versions, strict=True))


@pytest.mark.parametrize("copied", [deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_trains_its_own_weights_where_the_old_ones_lay(copied):
    """What a model keeps of its first weight is of no use to a copy, whose weight may get that
    memory: here from the model itself."""
    model = DilatedCNN()
    x, y = torch.randint(28, (32, 23)), torch.randint(28, (32, 16))
    model.sgd_step(x, y, 0.5)
    copy = copied(model)
    copy.layers[0].weight = model.layers[0].weight
    before = copy.layers[0].weight.clone()
    copy.sgd_step(x, y, 0.5)
    assert not torch.equal(copy.layers[0].weight, before)


def test_a_step_of_a_model_that_lacks_a_bias():
    model = DilatedCNN()
    model.layers[1].bias = None
    plain = deepcopy(model)
    plain.fused = False
    x, y = torch.randint(28, (32, 23)), torch.randint(28, (32, 16))
    torch.testing.assert_close(model.training_step(x, y), plain.training_step(x, y))
    torch.testing.assert_close(model.sgd_step(x, y, 0.5), plain.sgd_step(x, y, 0.5))
    for own, right in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own, right, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [CNN, DilatedCNN])
def test_steps_read_the_weights_that_training_left(kind):
    """Streaming keeps packed weights, which a step of SGD in one operator must make stale."""
    model = kind()
    x, y = torch.randint(28, (32, 23)), torch.randint(28, (32, 16))
    for _ in range(3):
        model.sgd_step(x, y, 0.5)
        with torch.no_grad():
            steps = model.prefill(x[:2, :9], model.init_state(2))[:, :, -1]
            state = model.init_state(2)
            for tokens in x[:2, :9].T:
                step = model.step(tokens, state)
            torch.testing.assert_close(step, model(x[:2, :9])[:, :, -1], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(step, steps, rtol=1e-5, atol=1e-5)


def test_the_gradients_of_tied_parameters_add_up():
    model = DilatedCNN(context=16)
    model.layers[2].weight = model.layers[1].weight
    model.layers[2].bias = model.layers[1].bias
    plain = deepcopy(model)
    plain.fused = False
    x, y = torch.randint(28, (32, 31)), torch.randint(28, (32, 16))
    torch.testing.assert_close(model.training_step(x, y), plain.training_step(x, y))
    for own, right in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own.grad, right.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model.sgd_step(x, y, 0.5), plain.sgd_step(x, y, 0.5))
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [CNN, DilatedCNN])
def test_what_is_not_plain_is_not_fused(kind):
    """A parametrized layer trains what its weight is made of; a padding index has no gradient."""
    x, y = torch.randint(28, (32, 23)), torch.randint(28, (32, 16))
    normed, padded = kind(), kind()
    layer = normed.conv if kind is CNN else normed.layers[0]
    torch.nn.utils.parametrizations.weight_norm(layer)
    padded.embedding = torch.nn.Embedding(28, 10, padding_idx=int(x[0, 0]))
    for model in (normed, padded):
        plain = deepcopy(model)
        plain.fused = False
        loss = model.sgd_step(x, y, 0.5)
        torch.testing.assert_close(loss, plain.sgd_step(x, y, 0.5))
        torch.testing.assert_close(model.state_dict(), plain.state_dict())


@pytest.mark.parametrize("share", [False, True], ids=["dense", "shared"])
@pytest.mark.parametrize("context", [2, 8])
def test_a_dilated_step_in_one_call_is_that_of_its_layers(context, share):
    torch.manual_seed(0)
    sizes = {"vocab": 6, "context": context, "embedding": 3, "hidden": 20}
    fused = DilatedCNN(**sizes).double()
    layers = DilatedCNN(**sizes, fused=False, backend="torch").double()
    layers.load_state_dict(fused.state_dict())
    fused.share_contexts = share
    assert fused.is_a_stack()
    x = torch.randint(6, (9, 12))
    y = torch.randint(6, (9, 12 - context + 1))
    torch.testing.assert_close(fused.training_step(x, y), layers.training_step(x, y))
    for mine, theirs in zip(fused.parameters(), layers.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad)
    torch.testing.assert_close(fused(x), layers(x))
    for reduction in ("mean", "sum", "none"):
        losses = [model.loss(x, y, reduction) for model in (fused, layers)]
        torch.testing.assert_close(*losses)
        gradients = [
            torch.autograd.grad(loss.sum(), list(model.parameters()))
            for model, loss in zip((fused, layers), losses, strict=True)
        ]
        torch.testing.assert_close(*gradients)
        with torch.no_grad():
            torch.testing.assert_close(fused.loss(x, y, reduction), losses[1])


@pytest.mark.parametrize(("kind", "sizes"), [(CNN, {}), (DilatedCNN, {"hidden": 3})])
def test_the_derivatives_of_a_loss(kind, sizes):
    model = kind(vocab=4, context=2, embedding=2, **sizes).double()
    names = [name for name, _ in model.named_parameters()]
    x, y = torch.randint(4, (2, 5)), torch.randint(4, (2, 4))

    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self):
            return self.model.loss(x, y)

    def loss(*parameters):
        named = {f"model.{name}": p for name, p in zip(names, parameters, strict=True)}
        return torch.func.functional_call(Loss(), named, ())

    parameters = [p.detach().clone().requires_grad_() for p in model.parameters()]
    assert torch.autograd.gradcheck(loss, parameters)
    assert torch.autograd.gradgradcheck(loss, parameters)


@pytest.mark.parametrize("kind", [CNN, DilatedCNN])
def test_frozen_parameters_get_no_gradient_in_a_step(kind: type[CharModel]):
    model = kind(vocab=4, context=4, embedding=2)
    model.embedding.weight.requires_grad_(False)
    model.training_step(torch.zeros(9, 5, dtype=torch.int64), torch.zeros(9, 2, dtype=torch.int64))
    words, *others = model.parameters()
    assert words.grad is None
    assert all(parameter.grad is not None for parameter in others)


def test_a_dilated_model_falls_apart_into_layers():
    model = DilatedCNN(vocab=4, context=4, embedding=2, hidden=3)
    assert model.is_a_stack()
    assert not DilatedCNN(fused=False).is_a_stack()
    assert not DilatedCNN(backend="torch").is_a_stack()
    assert not DilatedCNN().bfloat16().as_stack_with_loss(8, ())
    model.layers[1].register_forward_hook(lambda *_: None)
    assert not model.is_a_stack()
    x, y = torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.int64)
    model.training_step(x, y)
    assert model.embedding.weight.grad is not None


def test_a_dilated_model_compiles_to_one_graph():
    torch._dynamo.reset()
    model = DilatedCNN(vocab=4, context=4, embedding=2, hidden=3)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randint(4, (2, 7))
    torch.testing.assert_close(compiled(x), model(x))
    gradients = [
        torch.autograd.grad(m(x).square().sum(), list(model.parameters()))
        for m in (compiled, model)
    ]
    torch.testing.assert_close(*gradients)
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", [CNN, DilatedCNN])
def test_a_training_step_compiles_to_one_graph(kind):
    """Loss and gradients of `model.loss`, which is what a step differentiates."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = kind(vocab=4, context=4, embedding=2)
    x, y = torch.randint(4, (9, 7)), torch.randint(4, (9, 4))
    compiled = torch.compile(model.loss, backend="aot_eager", fullgraph=True)
    losses = compiled(x, y), model.loss(x, y)
    torch.testing.assert_close(*losses)
    parameters = list(model.parameters())
    torch.testing.assert_close(*(torch.autograd.grad(loss, parameters) for loss in losses))
    torch._dynamo.reset()


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


@pytest.mark.parametrize("size", ["vocab", "context", "embedding", "hidden"])
@pytest.mark.parametrize("value", ["8", 2.5, None])
def test_sizes_that_are_no_integers(size, value):
    with pytest.raises(TypeError, match=f"{size} must be an integer, got {value!r}"):
        DilatedCNN(**{size: value})


@pytest.mark.parametrize("kind", [CNN, MLP, DilatedCNN])
def test_a_compiled_training_step(kind):
    torch._dynamo.reset()
    model = kind(7, 4, 3)
    x, y = torch.randint(7, (5, 9)), torch.randint(7, (5, 6))
    loss = model.training_step(x, y)
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    whole = kind is DilatedCNN  # the others call backward(), where a graph breaks
    compiled = torch.compile(model.training_step, backend="aot_eager", fullgraph=whole)
    torch.testing.assert_close(compiled(x, y), loss)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
