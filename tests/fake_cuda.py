"""Fake CUDA tensors on a machine without a GPU: forward and backward run with shapes only, as if on "cuda".

`torch._subclasses.FakeTensorMode` makes such tensors on any build of torch, but indexing and the backward pass ask the
build for a device and its streams. A small library answers. It must be loaded before torch, so in a process of its own.
"""

import ctypes
import importlib.util
import shutil
import subprocess
from pathlib import Path

SOURCE = """
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
namespace {
using c10::DeviceType;
using c10::Stream;
Stream only() { return Stream(Stream::DEFAULT, c10::Device(DeviceType::CUDA, 0)); }
struct Guard final : c10::impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  void record(void**, const Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  void destroyEvent(void*, c10::DeviceIndex) const noexcept override {}
  bool queryEvent(void*) const override { return true; }
  Stream getStream(c10::Device) const noexcept override { return only(); }
  Stream getDefaultStream(c10::Device) const override { return only(); }
  Stream exchangeStream(Stream) const noexcept override { return only(); }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard);
struct CUDAHooks : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
};
using at::CUDAHooksRegistry;
using at::RegistererCUDAHooksRegistry;
REGISTER_CUDA_HOOKS(CUDAHooks);
}  // namespace
"""


def torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def why_not() -> str | None:
    """Why the library cannot be built here, or None."""
    if shutil.which("g++") is None:
        return "needs g++"
    return None if (torch_folder() / "lib/libtorch_cpu.so").is_file() else "needs torch's shared libraries"


def build(folder: Path) -> Path:
    """The library, built in a folder."""
    source, library, torch = folder / "fake_cuda.cpp", folder / "fake_cuda.so", torch_folder()
    source.write_text(SOURCE)
    flags = ["-std=c++20", "-O0", "-shared", "-fPIC", f"-I{torch}/include", f"-L{torch}/lib", "-lc10", "-ltorch_cpu"]
    subprocess.run(["g++", str(source), "-o", str(library), *flags], check=True, capture_output=True, text=True)
    return library


def load(library: str) -> None:
    """Loads the library; call it before torch is imported."""
    for pattern in ("libgomp*", "libc10.so", "libtorch_cpu.so"):
        for path in (torch_folder() / "lib").glob(pattern):
            ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    ctypes.CDLL(library, ctypes.RTLD_GLOBAL)
