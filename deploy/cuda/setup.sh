#!/usr/bin/env bash
# CUDA's compiler from Python packages, for machines that have neither a card nor a toolkit: 1.2 GB of disk with the libraries
# that a program needs at run time, 290 MB without.
#
#   deploy/cuda/setup.sh [--with-libraries] [FOLDER]     without a folder: target/cuda-toolkit
#   . FOLDER/env
#   cargo build --release --features cuda
#
# What comes of it (docs/gpu.md): FOLDER/env, which sets what cargo, candle's build scripts and ours look for. A program built so
# is linked to none of CUDA's libraries: it opens the driver's libcuda.so.1, and libcublas, libcublasLt and libcurand of CUDA 13,
# when it is told to run on a card. Where those are not installed on the machine with the card, --with-libraries fetches them, and
# LD_LIBRARY_PATH says where they are.
set -euo pipefail
cd "$(dirname "$0")/../.."

libraries=
if [ "${1:-}" = --with-libraries ]; then
  libraries=yes
  shift
fi
mkdir -p "${1:-target/cuda-toolkit}"
folder=$(cd "${1:-target/cuda-toolkit}" && pwd)

# One release of CUDA throughout: 13.0 runs on drivers from 580 on, and a driver compiles no PTX of a later one.
build=(nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-runtime==13.0.88
  nvidia-cuda-cccl==13.0.85)
run=(nvidia-cublas==13.0.2.14 nvidia-curand==10.4.0.35 nvidia-cuda-nvrtc==13.0.88)
[ -x "$folder/venv/bin/pip" ] || python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps "${build[@]}" ${libraries:+"${run[@]}"}

home=$("$folder/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia/cu13

# What the linker is shown. The libraries that are opened at run time are empty here, so that nothing is linked to them; the
# runtime is the static one, since no machine has it that has only a driver.
stubs=$home/lib/stubs
mkdir -p "$stubs" "$folder/bin"
for name in cuda nvrtc curand cublas cublasLt; do
  "${CC:-cc}" -shared -x c /dev/null -o "$stubs/lib$name.so"
done
ln -sf ../libcudart_static.a "$stubs/libcudart.a"

# candle asks for the cudarc that is linked to its libraries, and features cannot be taken back: the compiler is told of the one
# that opens them, for this one crate.
cat > "$folder/bin/rustc-wrapper" <<'WRAPPER'
#!/usr/bin/env bash
case " $* " in
  *" --crate-name cudarc "*) exec "$@" --cfg 'feature="dynamic-loading"' ;;
  *) exec "$@" ;;
esac
WRAPPER

# candle's static kernels are compiled for one capability alone; with the PTX beside it the driver makes them for later ones.
cat > "$folder/bin/nvcc" <<WRAPPER
#!/usr/bin/env bash
args=()
for arg in "\$@"; do
  [[ \$arg =~ ^-gencode=arch=compute_([0-9a]+),code=sm_([0-9a]+)\$ && " \$* " == *" -c "* ]] &&
    arg="-gencode=arch=compute_\${BASH_REMATCH[1]},code=[sm_\${BASH_REMATCH[2]},compute_\${BASH_REMATCH[1]}]"
  args+=("\$arg")
done
exec "$home/bin/nvcc" "\${args[@]}"
WRAPPER
chmod +x "$folder/bin/nvcc" "$folder/bin/rustc-wrapper"

cat > "$folder/env" <<ENV
# Made by deploy/cuda/setup.sh.
export CUDA_HOME='$home'
export NVCC='$folder/bin/nvcc'
export CUDARC_CUDA_VERSION=13000
export CUDA_COMPUTE_CAP=80
export RUSTC_WRAPPER='$folder/bin/rustc-wrapper'
case ":\$PATH:" in *":$folder/bin:"*) ;; *) export PATH="$folder/bin:\$PATH" ;; esac
ENV

"$folder/bin/nvcc" --version | sed -n 's/^Cuda compilation tools, //p'
echo "now: . ${folder#"$PWD"/}/env"
