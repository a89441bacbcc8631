"""The rows of docs/compatibility.md, each with the tests that show it."""

from __future__ import annotations

# Section -> what works -> the tests that show it, as file::function, or file::function[parameters]
# where it shows in some of its parameters only.
ROWS: dict[str, dict[str, list[str]]] = {
    "Package": {
        "loads, and says how it was built": ["test_build.py::test_build_info"],
        "CUDA operators, where the wheel has them": [
            "test_build.py::test_cuda_operators_are_there_where_the_build_has_them"
        ],
        "needs nothing of torch's Python side": [
            "test_build.py::test_the_binaries_do_not_depend_on_the_python_side_of_torch"
        ],
        "importing leaves the GIL as it is (free-threaded Python)": [
            "test_machinery.py::test_importing_leaves_the_gil_as_it_is"
        ],
        "`Conv1d` is `torch.nn.Conv1d`": ["test_layers.py::test_is_the_layer_of_torch"],
        "`swap_conv1d`": ["test_layers.py::test_swap_keeps_everything"],
        "copies, pickles": ["test_layers.py::test_copies_and_pickles"],
        "gradients in every dtype": ["test_autograd.py::test_gradients_in_every_dtype"],
    },
    "Compilers": {
        "`torch.compile`, static shapes": [
            "test_compile.py::test_forward_and_backward[*static]",
            "test_compile.py::test_layers",
        ],
        "`torch.compile`, dynamic shapes": [
            "test_compile.py::test_forward_and_backward[*dynamic]",
            "test_compile.py::test_one_graph_for_every_length",
        ],
        "`torch.compile` with Inductor": ["test_compile.py::test_inductor"],
        "`torch.compile` under autocast": ["test_compile.py::test_autocast"],
        "compiled autograd": ["test_machinery.py::test_compiled_autograd"],
        "compiled streaming": ["test_streaming.py::test_compiled"],
        "`torch.export`": [
            "test_compile.py::test_export",
            "test_stack.py::test_exported_over_tokens_it_takes_any_number_of_them",
        ],
        "training what `torch.export` made": [
            "test_compile.py::test_an_exported_model_has_gradients"
        ],
        "AOTInductor package of a swapped model": ["test_machinery.py::test_aot_inductor"],
        "`torch.jit.trace`, as torch's own operators": ["test_tracing.py::test_jit_trace"],
        "`torch.fx`": ["test_tracing.py::test_fx", "test_tracing.py::test_fx_with_leaves"],
        "`opcheck` of every operator": [
            "test_ops.py::test_opcheck",
            "test_stack_ops.py::test_opcheck",
            "test_streaming.py::test_opcheck",
        ],
    },
    "Derivatives": {
        "first and second": ["test_autograd.py::test_first_and_second_derivatives"],
        "batched: `is_grads_batched=True`, `vectorize=True`": [
            "test_stack.py::test_batched_gradients"
        ],
        "`torch.func`: grad, jvp, vjp, jacfwd, jacrev, hessian": [
            "test_autograd.py::test_func_transforms",
            "test_machinery.py::test_jacrev_and_hessian",
        ],
        "`torch.func.vmap`": [
            "test_autograd.py::test_vmap",
            "test_autograd.py::test_vmap_inside_vmap_and_under_grad",
        ],
        "per-sample gradients": [
            "test_functional.py::test_functional_call_and_per_sample_gradients"
        ],
        "ensembles of models": ["test_machinery.py::test_an_ensemble_of_models"],
    },
    "Training": {
        "autocast on the CPU": ["test_functional.py::test_autocast"],
        "autocast on GPUs": ["test_gpu_torch.py::test_autocast"],
        "gradient checkpointing": ["test_machinery.py::test_checkpointing"],
        "checkpointing under autocast": ["test_machinery.py::test_checkpointing_under_autocast"],
        "saved-tensor hooks": ["test_machinery.py::test_saved_tensors_on_their_way"],
        "anomaly mode": ["test_machinery.py::test_anomaly_mode_names_the_forward_call"],
        "deterministic mode": ["test_machinery.py::test_deterministic_algorithms"],
        "weight and spectral norm, pruning": [
            "test_layers.py::test_swap_of_a_parametrized_layer",
            "test_machinery.py::test_spectral_norm_and_pruning",
        ],
        "sequence parallelism": ["test_parallel.py::test_equals_the_unsplit_layer[2]"],
    },
    "Surroundings": {
        "meta device, fake tensors": ["test_functional.py::test_meta_and_fake_tensors"],
        "a model made on the meta device": ["test_machinery.py::test_made_on_the_meta_device"],
        "tensor subclasses": ["test_functional.py::test_tensor_subclasses"],
        "a DataLoader that forks after use": [
            "test_machinery.py::test_a_data_loader_that_forks_after_the_kernels_ran"
        ],
        "Python threads": [
            "test_machinery.py::test_threads_of_python",
            "test_machinery.py::test_the_first_call_may_come_from_any_thread",
        ],
    },
}
