"""Model files of each format as functions of arrays.

Each takes arrays by the names of the signature's inputs, and what says whether somebody still wants the
answer: arrays by the names of its outputs. On a GPU where there is one that the format's library can use.
"""

import math
import mmap
import os
import sys
import zipfile
from functools import partial
from pathlib import Path

import numpy as np

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def load(form, path, inputs, outputs, largest=1, until=math.inf):
    """A model file, loaded. `inputs` and `outputs`: the signature's names, in order. Raises what is wrong.

    `largest`: how many rows a batch has at most. `until`, of the monotonic clock: when whoever waits for it
    gives up.
    """
    return _LOADERS[form](path, inputs, outputs, largest, until)


class Ended(Exception):  # noqa: N818 - what happened
    """What answers has ended, or hung and was ended: only loading the version anew brings it back."""


class _Model:
    """A format whose models run in this process.

    `sizes`: of batches, in rows, that are to be tried before somebody waits for one.
    """

    sizes = (1, 2)

    def close(self):
        """End what it has started: nothing."""


class _Onnx(_Model):
    def __init__(self, path, _inputs, outputs, largest, _until):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # Many small requests: threads of one run only get in each other's way.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._open = partial(onnxruntime.InferenceSession, path, options, providers=_providers(onnxruntime))
        session = self._open()
        self._outputs = outputs
        on_gpu = CUDA in session.get_providers()
        if on_gpu:
            self.sizes = ladder(largest)
        # A convolution on a GPU is planned anew for each batch that has another size than the one before, for
        # twenty times as long as it takes: few sizes, each with a session of its own, are planned once.
        self._padded = on_gpu and _convolves(path)
        self._sessions = {self.sizes[0] if self._padded else None: session}

    def __call__(self, inputs, _wanted=None):
        taken = {name: _decoded(value) if value.dtype == object else value for name, value in inputs.items()}
        if not self._padded:
            return self._run(None, taken)
        rows = len(next(iter(taken.values())))
        size = next(size for size in self.sizes if size >= rows)
        filled = {name: _filled(value, size) for name, value in taken.items()}
        return {name: answer[:rows] for name, answer in self._run(size, filled).items()}

    def _run(self, size, inputs):
        if size not in self._sessions:
            self._sessions[size] = self._open()
        return dict(zip(self._outputs, self._sessions[size].run(self._outputs, inputs), strict=True))


class _Torch(_Model):
    """A program of PyTorch's. Inputs go by position; outputs come by position, or in a dictionary by name."""

    def __init__(self, read, path, inputs, outputs, largest, _until):
        # Before PyTorch is imported, which takes seconds.
        if not zipfile.is_zipfile(path):
            raise ValueError("its file is no archive, as torch.jit.save and torch.export.save write")
        self._torch = _torch()
        # As of ONNX.
        self._torch.set_num_threads(1)
        self._device = self._torch.device("cuda" if self._torch.cuda.is_available() else "cpu")
        self._inputs = inputs
        self._outputs = outputs
        self._program = read(self._torch, path, self._device)
        if self._device.type != "cpu":
            # Each size is planned once, and the plan kept; smaller ones are given the memory of the largest.
            self.sizes = (1, 2, *range(largest, 2, -1))

    def __call__(self, inputs, _wanted=None):
        with self._torch.inference_mode():
            answers = self._program(*(self._tensor(name, inputs[name]) for name in self._inputs))
        if isinstance(answers, dict):
            return {name: self._array(name, answers.get(name)) for name in self._outputs}
        answers = answers if isinstance(answers, tuple | list) else (answers,)
        if len(answers) != len(self._outputs):
            raise ValueError(f"it answers {len(answers)} tensors, the signature says {len(self._outputs)}")
        return {name: self._array(name, answer) for name, answer in zip(self._outputs, answers, strict=True)}

    def _tensor(self, name, array):
        if array.dtype == object:
            raise ValueError(f"the input {name} is texts, which no program of PyTorch's takes")
        return self._torch.from_numpy(array).to(self._device)

    def _array(self, name, answer):
        if not isinstance(answer, self._torch.Tensor):
            raise TypeError(f"its output {name} is {type(answer).__name__}, and no tensor")
        return answer.cpu().numpy()


def _providers(onnxruntime):
    """Where a model runs: on a GPU where this is the library's build for CUDA, and there is one.

    Where there is none, the library says so in Triton's log, and takes the next.
    """
    if CUDA not in onnxruntime.get_available_providers():
        return [CPU]
    # CUDA's libraries are packages beside it, where the system has none.
    onnxruntime.preload_dlls()
    options = {
        # A GPU is shared by models, and memory is not given back: take what is needed, and not twice that.
        "arena_extend_strategy": "kSameAsRequested",
        # Batches differ in size, and trying every algorithm for each new one takes seconds.
        "cudnn_conv_algo_search": "HEURISTIC",
        # Answers are those that the model was evaluated with.
        "use_tf32": "0",
    }
    return [(CUDA, options), CPU]


def ladder(largest):
    """Sizes of batches up to the largest, each four times the one before: on a GPU most rows cost nothing."""
    sizes = [1]
    while 4 * sizes[-1] < largest:
        sizes.append(4 * sizes[-1])
    return (*sizes, max(2, largest))


def _convolves(path):
    """Whether a step of an ONNX model is a convolution, by the bytes of a node's field `op_type`."""
    with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as model:
        return any(model.find(b'"%c%s' % (len(name), name)) >= 0 for name in (b"Conv", b"ConvTranspose"))


def _filled(rows, size):
    """The rows, with the last one repeated until they are so many."""
    return np.concatenate([rows, np.repeat(rows[-1:], size - len(rows), axis=0)])


def _script(torch, path, device):
    return torch.jit.load(path, map_location=device).eval()


def _package(path, inputs, outputs, _largest, until):
    from python_package import Package

    return Package(path, inputs, outputs, until)


def _exported(torch, path, device):
    program = torch.export.load(path)
    if device.type != "cpu":
        from torch.export.passes import move_to_device_pass

        # A program has the device in it that it was exported on.
        program = move_to_device_pass(program, device)
    return program.module()


_LOADERS = {
    "ONNX": _Onnx,
    "TORCHSCRIPT": partial(_Torch, _script),
    "TORCH_EXPORT": partial(_Torch, _exported),
    "PYTHON": _package,
}


def _torch():
    """PyTorch, which is not in Triton's own environment: it is ten times as large as all of that."""
    path = os.environ.get("HEADRACE_TORCH_PATH", "")
    if path and path not in sys.path:
        # Behind Triton's own, whose numpy is the one that the Python backend is built against.
        sys.path.append(path)
    try:
        import torch
        import torch.export
    except ImportError as error:
        raise ValueError(
            f"PyTorch cannot be imported ({error}); HEADRACE_TORCH_PATH tells Triton in which folder it is"
        ) from None
    return torch


def _decoded(texts):
    """Triton's bytes as ONNX Runtime takes them; what is no UTF-8 becomes a text like no other."""
    flat = [item.decode(errors="replace") for item in texts.ravel()]
    return np.array(flat, dtype=object).reshape(texts.shape)
