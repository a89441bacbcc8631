"""The loop, the losses and the curve."""

import math

import pytest
import torch

from convlm_kernels.lm import (
    CNN,
    DilatedCNN,
    Progress,
    Schedule,
    Split,
    evaluate,
    make_data,
    train,
)
from convlm_kernels.lm.char_model import CharModel, loss_of
from convlm_kernels.lm.plots import moving_average, plot_losses
from convlm_kernels.lm.training import TrainingError

WORDS = [a + b + a for a in "abcde" for b in "abcde"]


@pytest.fixture
def data():
    return make_data(WORDS, context=2)


def small_model(data, seed=0):
    torch.manual_seed(seed)
    return DilatedCNN(len(data.alphabet), context=2, embedding=4)


def test_the_seeds_schedule():
    schedule = Schedule()
    assert (schedule.steps, schedule.batch_size) == (20_000, 32)
    assert [schedule.lr_at(step) for step in (0, 14_999, 15_000)] == [0.1, 0.1, 0.01]


def test_one_step_is_sgd(data):
    """The loop's step against the formula, on the batch that the generator draws."""
    model, twin = small_model(data), small_model(data)
    train(model, data.train, Schedule(steps=1, batch_size=4, lr=0.3), Progress.start(7))
    rows = torch.randint(len(data.train.x), (4,), generator=torch.Generator().manual_seed(7))
    loss_of(twin(data.train.x[rows]), data.train.y[rows]).backward()
    for ours, before in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, before - 0.3 * before.grad)


@pytest.mark.parametrize("kind", [CNN, DilatedCNN])
def test_fused_training_is_the_same(data, kind):
    """The same batches, losses and weights as on layers of torch and with its optimizer."""
    torch.manual_seed(0)
    model = kind(len(data.alphabet), context=2, embedding=4).double()
    twin = kind(len(data.alphabet), context=2, embedding=4, fused=False, backend="torch").double()
    twin.load_state_dict(model.state_dict())
    progress, steps = Progress.start(7), 50
    train(model, data.train, Schedule(steps, batch_size=8, lr=0.3), progress)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.3)
    generator = torch.Generator().manual_seed(7)
    losses = []
    for _ in range(steps):
        rows = torch.randint(len(data.train.x), (8,), generator=generator)
        loss = loss_of(twin(data.train.x[rows]), data.train.y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert progress.losses == pytest.approx(losses, rel=1e-10)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_training_lowers_the_loss(data, capsys):
    model = small_model(data)
    progress = Progress.start(0)
    before = evaluate(model, data.train, data.alphabet.stop)
    train(model, data.train, Schedule(steps=1000, lr_drop=750), progress)
    after = evaluate(model, data.train, data.alphabet.stop)
    assert after.all_positions < before.all_positions - 0.5
    assert len(progress.losses) == progress.step == 1000
    assert "step  1,000  loss" in capsys.readouterr().out


def test_both_losses(data):
    """Against a model that gives each symbol the same logit but stop one that is higher by a."""
    a, stop = 3.0, data.alphabet.stop

    class Constant(CharModel):
        def forward(self, x):
            logits = torch.zeros(len(x), len(data.alphabet), x.shape[1] - 1)
            logits[:, stop] = a
            return logits

    normal = math.log(len(data.alphabet) - 1 + math.exp(a))
    model = Constant(len(data.alphabet), context=2, embedding=1)
    losses = evaluate(model, data.train, stop, chunk=7)
    assert losses.real_predictions == pytest.approx(normal - a / 4)  # three letters and a stop
    assert losses.all_positions == pytest.approx(normal - a / 4)  # no word is shorter
    longer = make_data([*WORDS, "a" * 7], context=2)
    losses = evaluate(model, longer.val, stop)
    assert losses.real_predictions == pytest.approx(normal - a / 4)
    assert losses.all_positions == pytest.approx(normal - a * 5 / 8)


def test_sixteen_bit_logits_do_not_overflow_the_loss():
    logits = torch.full((1, 2, 3), 6e4, dtype=torch.float16)
    y = torch.zeros(1, 3, dtype=torch.int64)
    assert loss_of(logits, y).item() == pytest.approx(math.log(2))


def test_a_loss_that_is_not_finite_stops(data):
    model = small_model(data)
    with torch.no_grad():
        model.embedding.weight.fill_(math.inf)
    progress = Progress.start(0)
    with pytest.raises(TrainingError, match="loss became nan at step 0"):
        train(model, data.train, Schedule(steps=5), progress)
    assert progress.step == 0


def test_stop_ends_after_the_step(data):
    progress = Progress.start(0)

    def stop_at_three(progress):
        progress.stop = progress.step == 3

    train(small_model(data), data.train, Schedule(steps=9), progress, stop_at_three)
    assert progress.step == 3


def test_evaluate_keeps_the_mode(data):
    model = CNN(len(data.alphabet), context=2).eval()
    evaluate(model, data.val, data.alphabet.stop)
    assert not model.training


def test_moving_average():
    assert moving_average([1, 2, 3, 6], 2) == [1.5, 2.5, 4.5]
    assert moving_average([1, 2], 2) == [1.5]
    assert moving_average([], 1) == []


@pytest.mark.parametrize("steps", [0, 1, 250])
def test_loss_curve(tmp_path, steps):
    progress = Progress.start(0)
    progress.losses = [1 + 1 / (i + 1) for i in range(steps)]
    progress.evaluations = [(steps, 1.5)] if steps else []
    plot_losses(progress, tmp_path / "loss.png", "a title")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"steps": -1}, ValueError, "steps must be at least 0, got -1"),
        ({"steps": 2.5}, TypeError, "steps must be an integer, got 2.5"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, got 0"),
        ({"lr": math.nan}, ValueError, "lr must be finite and at least 0, got nan"),
        ({"final_lr": -0.1}, ValueError, "final_lr must be finite and at least 0, got -0.1"),
    ],
)
def test_impossible_schedules(given, error, message):
    with pytest.raises(error, match=message):
        Schedule(**given)


def test_nothing_to_evaluate(data):
    model = CNN(len(data.alphabet), data.context)
    split = Split(data.val.x[:0], data.val.y[:0])
    with pytest.raises(ValueError, match=r"split must have a prediction, got shape \(0, "):
        evaluate(model, split, data.alphabet.stop)
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        evaluate(model, data.val, data.alphabet.stop, chunk=0)
