"""The seed's layers and models, and a tiny layer: ours against those of `torch.nn.Conv1d`.

    python benchmarks/bench_seed.py --threads 1 --rounds 30 --json results.json

"aten" is our layer with backend="torch". Each row is checked for equal results before it is timed.
A layer's backward is that of its input, weight and bias; a step draws 32 rows and does forward,
loss, backward and SGD.
"""

import argparse
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from problem import Problem
from problems import SEED
from report import machine, print_table, write_json
from timing import Providers, Quantiles, measure, speedup
from torch import Tensor, nn

from convlm_kernels import Conv1d
from convlm_kernels.lm import CNN, DilatedCNN, Split
from convlm_kernels.lm.models import CharModel, loss_of

BATCH = 32
OURS, PEER, ATEN = "ours", "nn.Conv1d", "aten"

# Their cost is the call itself.
TINY = Problem("tiny 1->1 K2", 1, 1, 1, 8, 2)


def on_torch_layers(module: nn.Module) -> nn.Module:
    """A copy on `torch.nn.Conv1d` and `torch.nn.Tanh`, with the same parameters."""
    if isinstance(module, Conv1d):
        window: Any = (module.kernel_size, module.stride, module.padding, module.dilation)
        plain = nn.Conv1d(module.in_channels, module.out_channels, *window)
        plain.load_state_dict(module.state_dict())
        return nn.Sequential(plain, nn.Tanh()) if module.activation == "tanh" else plain
    copy = deepcopy(module)
    if hasattr(copy, "fused"):
        copy.fused = False
    for name, child in module.named_children():
        setattr(copy, name, on_torch_layers(child))
    return copy


def on_aten(module: nn.Module) -> nn.Module:
    copy = deepcopy(module)
    for layer in copy.modules():
        if isinstance(layer, Conv1d):
            layer.backend = "torch"
    return copy


def variants(module: nn.Module) -> dict[str, nn.Module]:
    return {OURS: module, PEER: on_torch_layers(module), ATEN: on_aten(module)}


def assert_equal(results: dict[str, list[Tensor]]) -> None:
    for name in results:
        for value, expected in zip(results[name], results[PEER], strict=True):
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)


def layer_benches(problem: Problem) -> dict[str, Providers]:
    torch.manual_seed(0)
    layer = Conv1d(
        problem.in_channels,
        problem.out_channels,
        problem.kernel_size,
        problem.stride,
        dilation=problem.dilation,
        activation=problem.activation,
    )
    x = torch.randn(problem.batch, problem.in_channels, problem.length, requires_grad=True)
    grad_output = torch.randn_like(layer(x))

    def forward(layer: nn.Module) -> list[Tensor]:
        with torch.no_grad():
            return [layer(x)]

    def forward_backward(layer: nn.Module) -> list[Tensor]:
        y = layer(x)
        return [y, *torch.autograd.grad(y, [x, *layer.parameters()], grad_output)]

    return {
        f"{problem.name}, forward": bind(forward, variants(layer)),
        f"{problem.name}, + backward": bind(forward_backward, variants(layer)),
    }


def step_bench(model: CharModel) -> Providers:
    """One training step of each variant, on random rows of the seed's shape."""
    split = Split(torch.randint(28, (25_626, 23)), torch.randint(28, (25_626, 16)))
    models = variants(model)
    optimizers = {
        id(model): torch.optim.SGD(model.parameters(), lr=0.01) for model in models.values()
    }
    generators = {id(model): torch.Generator().manual_seed(0) for model in models.values()}

    def step(model: nn.Module) -> list[Tensor]:
        rows = torch.randint(len(split.x), (BATCH,), generator=generators[id(model)])
        loss = loss_of(model(split.x[rows]), split.y[rows])
        optimizers[id(model)].zero_grad()
        loss.backward()
        optimizers[id(model)].step()
        return [loss.detach(), *(parameter.detach() for parameter in model.parameters())]

    return bind(step, models)


def bind(work: Callable[..., list[Tensor]], models: dict[str, nn.Module]) -> Providers:
    providers = {name: lambda model=model: work(model) for name, model in models.items()}
    assert_equal({name: provider() for name, provider in providers.items()})
    return providers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", metavar="OUT", help="write the figures there too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    benches: dict[str, Providers] = {}
    for problem in (TINY, *SEED):
        benches |= layer_benches(problem)
    benches |= {
        "dilated model, step": step_bench(DilatedCNN()),
        "CNN, step": step_bench(CNN()),
    }
    rows: list[list[str]] = []
    results: list[dict[str, Any]] = []
    for name, providers in benches.items():
        times = measure(providers, args.rounds)
        medians = {provider: Quantiles.of(values).median for provider, values in times.items()}
        ratio = speedup(times, OURS, PEER)
        results.append({"name": name, "seconds": medians, "speedup": ratio._asdict()})
        cells = [f"{1e6 * median:,.1f}" for median in medians.values()]
        spread = f"{ratio.median:.2f}  ({ratio.low:.2f}-{ratio.high:.2f})"
        rows.append([name, *cells, spread, f"{1 / medians[OURS]:,.0f} / {1 / medians[PEER]:,.0f}"])
    header = [f"{args.threads} thread(s), us a call", OURS, PEER, ATEN, "speedup  (quartiles)"]
    print_table([*header, f"calls/s, {OURS} / {PEER}"], rows)
    if args.json:
        write_json(args.json, {"machine": machine(), "rounds": args.rounds, "rows": results})


if __name__ == "__main__":
    main()
