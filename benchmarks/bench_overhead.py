"""What does a call cost where there is next to nothing to compute, eager and compiled?

python benchmarks/bench_overhead.py
"""

from collections.abc import Callable, Iterator

import torch
from suite import OURS, Case, Contest, Setting, Suite
from torch import Tensor, nn

from convlm_kernels import Conv1d, DilatedStack, StackLayer

PEER = "torch.nn"


def layer(setting: Setting) -> tuple[nn.Module, nn.Module]:
    ours = Conv1d(1, 1, 2, backend=setting.backend)
    return ours, copied(ours, nn.Conv1d(1, 1, 2))


def stack(setting: Setting) -> tuple[nn.Module, nn.Module]:
    dilations = 1, 2, 4
    ours = DilatedStack(*(StackLayer(4, 4, 2, dilation=d, activation="tanh") for d in dilations))
    plain: list[nn.Module] = []
    for d in dilations:
        plain += [nn.ConstantPad1d((d, 0), 0.0), nn.Conv1d(4, 4, 2, dilation=d), nn.Tanh()]
    return ours, copied(ours, nn.Sequential(*plain))


def copied(ours: nn.Module, peer: nn.Module) -> nn.Module:
    """`peer` with the parameters of ours, in their order."""
    with torch.no_grad():
        for theirs, mine in zip(peer.parameters(), ours.parameters(), strict=True):
            theirs.copy_(mine)
    return peer


MODULES: dict[str, tuple[Callable[[Setting], tuple[nn.Module, nn.Module]], int]] = {
    "layer 1->1 K2 on 1x1x8": (layer, 1),
    "stack of 3 layers on 1x4x8": (stack, 4),
}


def forward(module: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [module(x)]


def step(module: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.enable_grad():
        y = module(x)
        return [y.detach(), *torch.autograd.grad(y.sum(), [x, *module.parameters()])]


def contest(
    name: str, work: Callable[..., list[Tensor]], compiled: bool, setting: Setting
) -> Contest:
    torch.manual_seed(0)
    make, channels = MODULES[name]
    x = torch.randn(1, channels, 8, device=setting.device, requires_grad=True)
    calls = {}
    for who, module in zip((OURS, PEER), make(setting), strict=True):
        module = module.to(setting.device)
        if compiled:
            torch.compiler.reset()
            module = torch.compile(module, dynamic=False)
        calls[who] = lambda module=module: work(module, x)
    assert_equal(calls[OURS](), calls[PEER]())
    return Contest(calls)


def assert_equal(own: list[Tensor], other: list[Tensor]) -> None:
    for mine, theirs in zip(own, other, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def cases(setting: Setting) -> Iterator[Case]:
    for name in MODULES:
        for compiled in (False, True) if setting.compiled else (False,):
            for work in forward, step:
                function = f"{work.__name__}, {'compiled' if compiled else 'eager'}"
                if setting.wants(name):
                    yield Case(
                        name,
                        function,
                        lambda n=name, w=work, c=compiled: contest(n, w, c, setting),
                    )


SUITE = Suite(
    "overhead",
    "Overhead",
    "Microseconds of a call with next to nothing to compute: what Python, autograd and the "
    "dispatcher cost, eager and under torch.compile.",
    cases,
    share=0.06,
)

if __name__ == "__main__":
    from bench import main_of

    main_of(SUITE.name)
