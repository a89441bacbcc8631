# A notebook in the percent format: run it as a script, or cell by cell in Jupyter or VS Code.
# `make docs` runs it and shows its output on the site. Environment:
#   TUTORIAL_STEPS  of each training, 4,000 by default
#   TUTORIAL_WORDS  a file with one word a line, or "names"; by default the list that ships along

# %% [markdown]
# # Tutorial: a language model made of convolutions
#
# Three steps. First we write a convolution by hand, as slowly as possible, and see that PyTorch's
# layer and the one of this package are the same function. Then we build a language model of a
# single convolution, which turns out to be a multilayer perceptron in disguise, only quicker to
# train. Last, a stack of dilated convolutions fuses characters progressively, does better, and
# invents words.

# %%
import os

import matplotlib.pyplot as plt
import torch

from convlm_kernels import Conv1d, DilatedStack, EmbeddingConv1d, StackLayer
from convlm_kernels.lm import (
    CNN,
    MLP,
    DilatedCNN,
    Progress,
    Schedule,
    contexts,
    evaluate,
    load_words,
    make_data,
    sample,
    train,
)
from convlm_kernels.lm.plots import moving_average

torch.set_num_threads(1)  # these models are so small that a second thread would only wait
STEPS = int(os.environ.get("TUTORIAL_STEPS", "4000"))
words = load_words(os.environ.get("TUTORIAL_WORDS") or None)

# %% [markdown]
# ## 1. A convolution by hand
#
# Each output channel has a filter over all input channels. An output is the sum of the products of
# the filter's taps with the inputs that they read, plus a bias. Two settings say which inputs these
# are: outputs lie a *stride* apart, and the taps of one output a *dilation* apart. Positions
# outside the input are zeros.
#
# ![Taps a dilation apart, outputs a stride apart.](../docs/figures/geometry.svg)


# %%
def conv1d_by_hand(x, weight, bias, stride, padding, dilation):
    batch, _, length = x.shape
    kernel_size = weight.shape[2]
    out_length = (length + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1
    y = bias[:, None].repeat(batch, 1, out_length)
    for out in range(out_length):
        for tap in range(kernel_size):
            position = out * stride + tap * dilation - padding
            if 0 <= position < length:  # elsewhere: a zero
                y[:, :, out] += x[:, :, position] @ weight[:, :, tap].T
    return y


# %% [markdown]
# 32 signals of three channels and ten positions, six filters of three taps, with everything
# switched on at once. The same weights go into PyTorch's layer and into ours:

# %%
torch.manual_seed(0)
settings = dict(kernel_size=3, stride=4, padding=1, dilation=2)
theirs = torch.nn.Conv1d(3, 6, **settings)
ours = Conv1d(3, 6, **settings)
ours.load_state_dict(theirs.state_dict())

x = torch.randn(32, 3, 10)
with torch.no_grad():
    by_hand = conv1d_by_hand(x, theirs.weight, theirs.bias, stride=4, padding=1, dilation=2)
print("shape", tuple(ours(x).shape))
for name, layer in {"torch.nn.Conv1d": theirs, "convlm_kernels.Conv1d": ours}.items():
    torch.testing.assert_close(layer(x), by_hand)
    print(f"{name:22} differs by at most {(layer(x) - by_hand).abs().max():.0e}")

# %% [markdown]
# So do their gradients agree, which is what training is about:

# %%
for layer in (theirs, ours):
    layer(x).square().sum().backward()
torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
torch.testing.assert_close(ours.bias.grad, theirs.bias.grad)

# %% [markdown]
# ## 2. A language model that is one convolution
#
# The task: given the characters so far, what comes next? A word becomes a row of numbers. "."
# stands before it, eight times because our models see eight characters, and ";" after it. The stop
# is a symbol of its own: if "." closed words as well, a model would learn to begin again after
# every end.

# %%
data = make_data(words, context=8)
alphabet = data.alphabet
print(f"{len(words):,} words, {len(alphabet)} symbols: {alphabet.symbols}")
print("x", tuple(data.train.x.shape), " y", tuple(data.train.y.shape))
for name, row in (("x", data.train.x[0]), ("y", data.train.y[0])):
    print(name, "".join(alphabet.symbols[i] for i in row))

# %% [markdown]
# `y[i]` is what follows `x[i], ..., x[i + 7]`. A classical model, a multilayer perceptron (MLP),
# takes each such context as an example of its own: it concatenates the embeddings of eight
# characters, ten numbers each, and multiplies these 80 numbers by a matrix.
#
# Now lay the embeddings of the whole row end to end, as one channel of a signal. A filter of 80
# taps sees eight characters, and a stride of 10 moves it on by one character. So one strided
# convolution makes the predictions for *all* positions of a word at once:
#
# ![A kernel over embeddings laid end to end.](../docs/figures/one_convolution.svg)

# %%
size = 10  # numbers in the embedding of a character
embedding = torch.nn.Embedding(len(alphabet), size)
conv = Conv1d(1, len(alphabet), kernel_size=8 * size, stride=size)

rows = data.train.x[:32]
signal = embedding(rows).flatten(1).unsqueeze(1)
logits = conv(signal)
print("signal", tuple(signal.shape), " logits", tuple(logits.shape))

# %% [markdown]
# Eight taps over ten channels are the same sum as 80 taps over one channel, and because a character
# is one of few, what a tap makes of it can be looked up instead of being multiplied.
# `EmbeddingConv1d` does that. It even loads the weights of the strided form:

# %%
lookup = EmbeddingConv1d(len(alphabet), size, len(alphabet), kernel_size=8)
lookup.load_state_dict(
    {
        "embedding.weight": embedding.weight,
        "conv.weight": conv.weight,
        "conv.bias": conv.bias,
    }
)
torch.testing.assert_close(lookup(rows), logits)

# %% [markdown]
# `convlm_kernels.lm.CNN` is this model with its loss. We train it by plain gradient descent:
# batches of 32 words drawn with replacement, learning rate 0.1, and 0.01 for the last quarter.


# %%
def fit(model):
    progress = Progress.start(seed=1)
    train(model, data.train, Schedule(steps=STEPS, lr_drop=STEPS * 3 // 4), progress)
    return progress.losses


def show_losses(model):
    print("loss (nats)        train      val")
    splits = [evaluate(model, split, alphabet.stop) for split in (data.train, data.val)]
    for name in ("all_positions", "real_predictions"):
        print(f"{name.replace('_', ' '):16}", *(f"{getattr(s, name):8.4f}" for s in splits))


torch.manual_seed(1)
cnn = CNN(len(alphabet))
cnn_losses = fit(cnn)
show_losses(cnn)

# %% [markdown]
# The first line is an average over all positions of the padded rows. It flatters the model, since
# most positions are the easy ";" after the end; the second line counts only the letters and the
# first ";".
#
# ### The same weights in an MLP
#
# The convolution's weight, reshaped to a matrix, is the MLP's. Its loss over the contexts, one
# example each, is the convolution's loss over the rows:

# %%
mlp = MLP.from_cnn(cnn)
examples = contexts(data.val, context=8)
print("as rows:    ", tuple(data.val.x.shape))
print("as contexts:", tuple(examples.x.shape))
for name, model, split in (("CNN", cnn, data.val), ("MLP", mlp, examples)):
    print(f"{name}: {evaluate(model, split, alphabet.stop).all_positions:.4f}")

# %% [markdown]
# What did we gain? The MLP has to be given every context as an example; the convolution reads a
# word once and answers everywhere.
#
# ## 3. Fuse progressively
#
# One convolution over eight characters mixes all of them in a single linear step. WaveNet does it
# in stages: neighbours first, then neighbours of neighbours. A layer of two taps makes pairs of
# characters. On top of it, two taps with *dilation 2* make fours of pairs, and two taps with
# *dilation 4* make eights. Between them stands a tanh, which our layers apply while the sums are
# still in registers.
#
# ![Layers of two taps with growing dilation.](../docs/figures/receptive_field.svg)
#
# The figure has one layer more than we need: three layers see our eight characters.

# %%
hidden = 100
stack = DilatedStack(
    EmbeddingConv1d(len(alphabet), size, hidden, kernel_size=2, activation="tanh"),
    StackLayer(hidden, hidden, kernel_size=2, dilation=2, padding="valid", activation="tanh"),
    StackLayer(hidden, len(alphabet), kernel_size=2, dilation=4, padding="valid"),
)
y = rows
for layer in stack:
    y = layer(y)
    print(f"{type(layer).__name__:16}", tuple(y.shape))

# %% [markdown]
# A stack runs as one operator. It also counts: in a batch of padded words most pairs and fours of
# characters occur again and again, and each of them is computed once. `plan` tells:

# %%
print(stack.plan(rows))

# %% [markdown]
# `convlm_kernels.lm.DilatedCNN` is this stack with its loss, and is trained in the same way.

# %%
torch.manual_seed(1)
dilated = DilatedCNN(len(alphabet))
dilated_losses = fit(dilated)
show_losses(dilated)

# %%
figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
window = max(1, STEPS // 100)
for name, losses in (("one convolution", cnn_losses), ("dilated stack", dilated_losses)):
    axes.plot(range(window, STEPS + 1), moving_average(losses, window), label=name)
axes.set(xlabel="step", ylabel="loss over all positions (nats)")
axes.set_title(f"mean of {window} batches")
axes.grid(alpha=0.3)
axes.legend()
plt.show()

# %% [markdown]
# The dilated stack has the same eight characters to look at, and learns more from them.
#
# The list that ships with the package is short, so that this page is made quickly: train much
# longer, and the stack knows the training words by heart while it gets worse on others. On the
# 32,033 names of the makemore project (`TUTORIAL_WORDS=names TUTORIAL_STEPS=20000`) there is no
# such danger, and these cells give, in nats over the validation names:
#
# | | all positions | real predictions |
# |---|---|---|
# | one convolution, and the MLP | 1.00 | 2.27 |
# | dilated stack | 0.935 | 2.12 |
#
# ### Invent words
#
# Sampling starts with eight "." and draws one character after the other. Words with a star are in
# the list.

# %%
known = set(words)
for word in sample(dilated, alphabet, count=12, generator=torch.Generator().manual_seed(0)):
    print(word, "*" if word in known else "")

# %% [markdown]
# ### One character at a time
#
# `sample` does not run the window of eight characters again for every new one. A causal network can
# remember what later outputs will read: each layer keeps its last few inputs in a ring, and a step
# computes one position of every layer. The numbers are those of the full forward.
#
# ![A ring of four slots.](../docs/figures/rings.svg)

# %%
word = data.val.x[0]
state = dilated.init_state(batch=1)
with torch.no_grad():
    full = dilated(word[None])[0]
    for position, token in enumerate(word):
        logits = dilated.step(token[None], state)[0]
        if position >= 7:  # before that there is no whole context
            torch.testing.assert_close(logits, full[:, position - 7])
print("ring of", state.rings.shape[1], "numbers;", int(state.position), "steps taken")

# %% [markdown]
# Where to go from here: the [guide](../docs/guide.md) shows how the kernels came to be fast,
# [Language models](../docs/language-models.md) what else stacks and steps can do, and `convlm
# train` does on the command line what this page did.
