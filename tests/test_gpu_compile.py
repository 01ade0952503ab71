"""What only CUDA has: TF32, CUDA graphs, NCCL, steps without waiting, and memory that runs out.

The tests of ranks and of memory that a CPU can run, run there with --gpu-device cpu.
"""

import gc
import logging
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import DATA, ROOT, TINY, weights
from gpu_training import (
    TRAINING,
    change,
    lesson,
    make_views,
    new_state,
    parameters_of,
    snapshot,
    train,
    use_sgd,
    weights_of,
)
from torch import nn

from kd.config.settings import Training
from kd.data import feed
from kd.data.augmentation import Augmentation
from kd.knowledge import KNOWLEDGE
from kd.reports import report as reports
from kd.runs.active import ActiveRun
from kd.system import ranks
from kd.system.devices import pick_device
from kd.system.errors import USAGE, Problem

pytestmark = pytest.mark.gpu
LIGHT, MIXED = Augmentation("light"), Augmentation("strong", mixup=1.0)
TOO_MUCH = 2**46  # bytes, more than any machine has


# The device -------------------------------------------------------------------------------------


@pytest.mark.gpu("TF32")
def test_float32_is_float32(gpu):
    """TF32 keeps ten bits of the mantissa, float32 keeps 23: errors of 1e-3 instead of 1e-6."""
    torch.backends.cudnn.allow_tf32 = True
    assert pick_device("cuda") == gpu
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    rows, images = torch.rand(256, 256, device=gpu), torch.rand(8, 64, 32, 32, device=gpu)
    kernels = torch.rand(64, 64, 3, 3, device=gpu)
    pairs = [(rows @ rows, rows.double() @ rows.double()),
             (nn.functional.conv2d(images, kernels),
              nn.functional.conv2d(images.double(), kernels.double()))]
    for found, expected in pairs:
        assert ((found - expected).abs().max() / expected.abs().max()).item() < 2e-5


@pytest.mark.gpu("the choice of a GPU")
def test_a_gpu_is_chosen_by_name(gpu, monkeypatch):
    assert pick_device("auto") == torch.device("cuda") and pick_device("cuda:0").index == 0
    with pytest.raises(Problem, match="--device 'cuda:99' cannot be used on this machine"):
        pick_device("cuda:99")
    assert torch.ones(2, device=gpu).sum().item() == 2  # the failed attempt has no consequences
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    monkeypatch.setattr(ranks, "local_rank", lambda: 0)
    assert pick_device("cuda") == torch.device("cuda:0") == pick_device("auto")
    with pytest.raises(Problem, match="cannot be shared by 2 ranks"):
        monkeypatch.setattr(ranks, "local_rank", lambda: 1)
        pick_device("cuda:0")


@pytest.mark.gpu("page-locked memory")
@pytest.mark.parametrize("share, way", [(0.25, "resident"), (0.0, "ahead")])
def test_images_live_on_the_gpu_if_they_fit(gpu, monkeypatch, share, way):
    monkeypatch.setattr(feed, "RESIDENT_SHARE", share)
    views, called, pinned = make_views(gpu)[0], [], []
    for name in ("resident", "ahead"):
        def noted(*arguments, name=name, real=getattr(feed, name)):
            called.append(name)
            return real(*arguments)
        monkeypatch.setattr(feed, name, noted)
    gather = views.store.gather

    def watched(rows, block=None):
        pinned.append(block is not None and block.is_pinned())
        return gather(rows) if block is None else gather(rows, block)
    monkeypatch.setattr(views.store, "gather", watched)
    assert len(list(views.epoch(0))) == 4
    assert called == [way] and pinned == ([False] if way == "resident" else [True] * 4)
    assert feed._free_bytes(gpu) > 0


@pytest.mark.gpu("steps that do not wait for the device")
@pytest.mark.parametrize("way, amp, kind, how", [
    *(("resident", "bf16", kind, LIGHT) for kind in KNOWLEDGE), ("resident", "fp16", "kd", LIGHT),
    ("resident", "off", "kd", LIGHT), ("ahead", "bf16", "kd", LIGHT),
    ("resident", "bf16", "kd", MIXED), ("ahead", "off", "kd", MIXED)])
def test_a_step_does_not_wait_for_the_device(gpu, monkeypatch, way, amp, kind, how):
    """Every operation that waits raises an error between the third and the tenth step."""
    monkeypatch.setattr("kd.data.views.feed", getattr(feed, way))
    clip_norm, ema = (1.0, 0.9) if amp == "off" else (None, None)
    training = Training(epochs=1, batch_size=4, seed=3, clip_norm=clip_norm, ema=ema)
    teacher, objective, layers = lesson(gpu, kind, amp)
    state = new_state(gpu, amp, training=training)

    def after_step(state):
        if state.progress.total == 2:
            torch.cuda.set_sync_debug_mode("error")
        if state.progress.total == 10:
            torch.cuda.set_sync_debug_mode("default")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the mode is a prototype
            views = make_views(gpu, batch_size=4, augmentation=how)
            train(state, views, training=training, end=11, teacher=teacher,
                  objective=objective, layers=layers, after_step=after_step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert state.progress.total == 11


# --compile --------------------------------------------------------------------------------------


@pytest.fixture
def fresh_compiler():
    """Forget all compiled graphs, and keep torch's long trace out of the reports of failures."""
    torch.compiler.reset()
    logging.disable(logging.INFO)
    yield
    logging.disable(logging.NOTSET)
    torch.compiler.reset()


@pytest.fixture
def compiler(gpu, fresh_compiler):
    """The compiler's counters, set to zero. Skips the test without what Triton needs."""
    from torch._dynamo.utils import counters  # imported here, because it takes a second
    found = [os.environ.get("CC"), shutil.which("gcc"), shutil.which("clang")]
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    if not any(found) or not header.is_file():
        pytest.skip(f"--compile needs a C compiler and {header}")
    counters.clear()
    return counters


def trained(device, amp, name, compiled, steps=6):
    """Return the weights before and after some steps, with an uneven batch among them."""
    state = use_sgd(new_state(device, amp, name, drop_rate=0.0))
    before = weights_of(state)
    if compiled:
        state.network.compile()
    train(state, make_views(device), end=steps)
    return before, weights_of(state)


def test_a_compiled_network_is_used_in_training_only(gpu, fresh_compiler):
    """Use a compiler that changes nothing: it is quick, and a CPU has it."""
    calls, network = [], new_state(gpu).network

    def backend(graph, inputs):
        def counted(*arguments):
            calls.append(len(arguments))
            return graph(*arguments)
        return counted
    network.compiled = torch.compile(network.module, backend=backend, dynamic=False)
    for training, expected in ((True, 1), (False, 1), (True, 2)):
        network.module.train(training)
        assert network(torch.rand(4, 3, 24, 24, device=gpu)).shape == (4, 7)
        assert len(calls) == expected


@pytest.mark.gpu("--compile")
@pytest.mark.parametrize("name, amp", [("kdtiny", "off"), ("resnet18", "bf16")])
def test_a_compiled_network_learns_what_it_learns_without(gpu, compiler, record_property, name,
                                                          amp):
    """Compare with SGD, relative to how far the weights have moved.

    In float32 the two agree. In bf16 they round differently, so the compiled network may be as far
    from float32 as the other one is, with a factor of two.
    """
    start, exact = trained(gpu, "off", name, False)
    _, eager = trained(gpu, amp, name, False)
    _, compiled = trained(gpu, amp, name, True)
    moved = change(exact, start)
    errors = [change(one, exact) / moved for one in (eager, compiled)]
    record_property("measured", f"{name} in {amp} after 6 steps, distance from float32 relative to"
                                f" the way: {errors[0]:.1e}, with --compile {errors[1]:.1e}")
    assert errors[1] < (2e-3 if amp == "off" else 2 * errors[0] + 2e-3)
    # One graph for the batches of 12 images and one for those of 13, both as CUDA graphs.
    assert compiler["stats"]["unique_graphs"] == 2
    assert compiler["inductor"]["cudagraph_skips"] == 0


def check_average(device, compiled):
    """Compare the average of a run with one that is computed from its weights after each step."""
    training, kept = Training(epochs=3, batch_size=12, lr=3e-3, seed=3, ema=0.7), []
    state = new_state(device, training=training)
    average = {key: value.double() for key, value in weights_of(state).items()}
    if compiled:
        state.network.compile()
    train(state, make_views(device), training=training,
          after_step=lambda state: kept.append(weights_of(state)))
    for n, own in enumerate(kept):
        decay = min(0.7, (1 + n) / (10 + n))
        average = {key: decay * average[key] + (1 - decay) * value for key, value in own.items()}
    found = state.judged.module.state_dict()
    assert state.judged.compiled is None and len(kept) == 12
    assert found.pop("bn.num_batches_tracked") == 12
    for key, value in found.items():
        assert torch.allclose(value.double().cpu(), average[key], rtol=1e-5, atol=1e-6), key


def test_the_average_is_that_of_the_weights(gpu):
    check_average(gpu, compiled=False)


@pytest.mark.gpu("--compile")
def test_the_average_of_a_compiled_network_is_that_of_its_weights(gpu, compiler):
    check_average(gpu, compiled=True)


@pytest.mark.gpu("--compile")
def test_a_compiled_run_resumes_with_the_same_dropout(gpu, compiler, record_property):
    """With other units dropped, the weights would end a tenth of their way from each other."""
    def run(saved=None, steps=9):
        state = use_sgd(new_state(gpu, drop_rate=0.5))
        kept = []
        if saved is not None:
            state.load_state_dict(saved)
        state.network.compile()
        train(state, make_views(gpu), end=steps,
              after_step=lambda state: kept.append(snapshot(state)))
        return parameters_of(state), kept

    start = parameters_of(new_state(gpu, drop_rate=0.5))
    whole, snapshots = run()
    errors = []
    for step in (2, 5):
        torch.manual_seed(12345)
        errors.append(change(run(snapshots[step])[0], whole) / change(whole, start))
    record_property("measured", f"a resumed run with --compile differs by {max(errors):.1e} of the"
                                " way")
    assert max(errors) < 2e-3


@pytest.mark.gpu("--compile")
def test_several_compiled_runs_in_one_process_stop_and_go_on(gpu, compiler, script):
    words = ["--teacher", "kdwide", "--student", "kdtiny", "kdwide", *TINY, "--mode", "random",
             "--device", "cuda", "--amp", "fp16", "--compile"]
    code, out = script("distill", [*words, "--max-minutes", "0"])
    assert code == 143 and "saved in" in out
    code, out = script("distill", words)
    assert code == 0 and "continuing from step 1" in out, out
    for student in ("kdtiny", "kdwide"):
        run = DATA / f"random/kdwide-{student}/seed0"
        assert reports.read(run)["history"]["steps"] == 12
        assert all(value.isfinite().all() for value in weights(run).values())
        assert script("evaluate", [run, "--device", "cuda"])[1].count("(reproduced)") == 1


# Ranks ------------------------------------------------------------------------------------------


@pytest.fixture
def one_rank(gpu, monkeypatch):
    """Make this process the only rank of a process group, as torchrun starts it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}.items():
        monkeypatch.setenv(name, str(value))
    with ranks.process_group():
        yield


@pytest.mark.parametrize("sync, compiled, amp", [
    (False, False, "off"),
    pytest.param(True, False, "off", marks=pytest.mark.gpu("--sync-bn")),
    pytest.param(True, False, "bf16", marks=pytest.mark.gpu("--sync-bn")),
    pytest.param(False, True, "off", marks=pytest.mark.gpu("--compile"))])
def test_a_network_in_ddp_learns_what_it_learns_alone(gpu, one_rank, request, monkeypatch,
                                                      record_property, sync, compiled, amp):
    """A single rank wraps nothing, so two ranks are pretended while the network is wrapped."""
    if compiled:
        request.getfixturevalue("compiler")
    results = []
    for wrapped in (False, True):
        state = use_sgd(new_state(gpu, amp, drop_rate=0.0))
        start = weights_of(state)
        if wrapped:
            with monkeypatch.context() as patch:
                patch.setattr(ranks, "world_size", lambda: 2)
                state.network.wrap_ddp(sync)
            assert isinstance(state.network.parallel, nn.parallel.DistributedDataParallel)
            assert isinstance(state.network.module.bn, nn.SyncBatchNorm) == sync
            if compiled:
                state.network.compile()
        train(state, make_views(gpu), end=6)
        results.append(weights_of(state))
    assert results[0].keys() == results[1].keys()
    error = change(results[1], results[0]) / change(results[0], start)
    record_property("measured", f"DistributedDataParallel (sync {sync}, compiled {compiled}, {amp})"
                                f" differs by {error:.1e} of the way")
    assert error < (2e-3 if amp == "off" else 5e-2)


def test_values_of_the_device_and_of_the_cpu_go_through_the_group(gpu, one_rank, monkeypatch):
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    monkeypatch.setattr(ranks, "gather_words", lambda word: [word, word])
    found = ranks.sum_over_ranks(torch.arange(3.0, device=gpu))
    assert found.device.type == gpu.type and found.tolist() == [0, 1, 2]
    assert ranks.maximum([4, 2]) == [4, 2] and ranks.main_rank_says(True)
    state = new_state(gpu)
    ranks.broadcast_buffers(state.network.module)
    name = torch.cuda.get_device_name(gpu) if gpu.type == "cuda" else "cpu"
    run = SimpleNamespace(data=SimpleNamespace(device=gpu),
                          plan=SimpleNamespace(settings=SimpleNamespace(training=TRAINING)))
    assert ActiveRun.describe_ranks(run) == (
        f"; 2 ranks ({name} x 2), 12 images per step in total")


@pytest.mark.gpu("NCCL")
def test_sync_bn_on_one_rank_of_torchrun_is_noted_and_finishes(gpu):
    words = ["--teacher", "resnet18", "--student", "resnet18", *TINY, "--device", "cuda", "--mode",
             "random", "--max-steps", "2", "--sync-bn", "--image-size", "32"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
               "1", str(ROOT / "distill.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "note: --sync-bn has no effect on one rank" in done.stdout
    assert "ranks (" not in done.stdout and "Traceback" not in done.stderr
    [run] = Path("runs").glob("*/random/*/seed0")
    report = reports.read(run)
    assert report["history"]["steps"] == 2 and report["clock"]["device"].startswith("cuda (")


# Memory -----------------------------------------------------------------------------------------


def exhausted(real, device, calls=1):
    """Return a function that asks for too much memory in the given call, and calls `real`."""
    count = 0

    def call(*arguments, **options):
        nonlocal count
        count += 1
        if count == calls:
            torch.empty(TOO_MUCH, dtype=torch.uint8, device=device)
        return real(*arguments, **options)
    return call


@pytest.mark.parametrize("place", [
    "kd.data.views.augmented",  # the first batch
    "kd.loop.seed_step",  # a training step
    "kd.loop.predict",  # a validation
    "kd.models.Classifier.outputs"])  # the trial of the student
def test_memory_that_runs_out_is_one_line_and_the_next_run_of_the_list_finishes(
        gpu, script, monkeypatch, capsys, place):
    target, name = place.rsplit(".", 1)
    holder = sys.modules[target] if target in sys.modules else getattr(
        sys.modules["kd.models"], "Classifier")
    monkeypatch.setattr(holder, name, exhausted(getattr(holder, name), gpu))
    code, out = script("train_teacher", ["--model", "kdtiny", "kdwide", *TINY, "--max-steps", "2",
                                         "--device", gpu.type])
    err = capsys.readouterr().err
    assert code == USAGE and "1 of 2 runs failed" in out
    [line] = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "memory" in line and "Traceback" not in err
    assert (DATA / "teacher/kdwide/seed0/report.json").is_file()
    assert "Lower --batch-size" in line


@pytest.fixture
def little_memory(gpu):
    """Limit this process to 256 MB more of the GPU than it holds."""
    gc.collect()
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_reserved(gpu) + 256 * 2**20
    total = torch.cuda.get_device_properties(gpu).total_memory
    torch.cuda.set_per_process_memory_fraction(allowed / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@pytest.mark.gpu("memory with a limit")
def test_a_batch_that_does_not_fit_is_refused_and_a_smaller_one_trains(gpu, script, little_memory):
    """The first feature map of the large batch alone would take 600 MB."""
    words = ["--synthetic-images", "448", "--image-size", "192", "--device", "cuda", "--max-steps",
             "2", "--amp", "off"]
    code, out = script("train_teacher", ["--model", "resnet18", *TINY, *words, "--batch-size",
                                         "256"])
    last = out.splitlines()[-1]
    assert code == USAGE and last.startswith("error: ") and "out of memory" in last
    code, out = script("train_teacher", ["--model", "kdtiny", *TINY, *words, "--batch-size", "4"])
    assert code == 0, out
