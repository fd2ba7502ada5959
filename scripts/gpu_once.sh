#!/usr/bin/env bash
# All of it on a GPU machine that is at hand once and briefly, and that need not reach a network: packages, CUDA tests, a
# smoke run of every experiment, then records, those that tell most first, until the time is up. Run in the project's root:
#
#   bash scripts/gpu_once.sh [seconds=570] [out=gpu_once] [wheels=FOLDER] [results=FILE] [scale=gpu]
#       [stages=tests,smoke,records] [experiment=today,traces,generation,readme_table]
#
# seconds  for all of it; what is still running then is ended, and what was measured is kept
# out      a folder for what is to be brought back: results.tgz (records and report, packed anew every 20 seconds), the
#          archive for a pull request, log.txt, machine.txt
# wheels   packages that the machine lacks, carried along; they are installed beside the environment, not into it
# results  the results.tgz of an earlier call: what it measured is not measured again, and estimates go by its times
# scale    cpu to practise where there is no GPU
# stages   what to do, in this order
# experiment  what to try and measure: names of configs/experiment/ with commas between them, or all; planning all of them
#          takes half a minute, for many of which a quarter of an hour has no time
#
# PYTHON names the interpreter (python3). Where the tree was carried without .git, or over a checkout of another commit,
# PREPACK_BENCH_COMMIT says which commit it is: `scripts/share.py check` compares it with the code that measured.
# docs/gpu.md has the whole way.
set -u
fail() { echo "error: $1" >&2; exit 2; }
seconds=570 out=gpu_once wheels='' results='' scale=gpu stages=tests,smoke,records python=${PYTHON:-python3}
experiment=today,traces,generation,readme_table
for argument in "$@"; do
  case $argument in
    seconds=* | out=* | wheels=* | results=* | scale=* | stages=* | experiment=*) printf -v "${argument%%=*}" %s "${argument#*=}" ;;
    *) fail "$argument: there is no such option; give seconds=, out=, wheels=, results=, scale=, stages= or experiment=" ;;
  esac
done
[[ $seconds =~ ^([6-9][0-9]|[1-9][0-9]{2,5})$ ]] || fail "seconds: '$seconds'; give a whole number of 60 or more"
[[ $scale =~ ^(cpu|gpu)$ ]] || fail "scale: unknown '$scale'; choose one of cpu, gpu"
[[ $stages =~ ^(tests|smoke|records)(,(tests|smoke|records))*$ ]] || fail "stages: '$stages'; choose of tests, smoke, records"
[ -z "$wheels" ] || compgen -G "$wheels/*.whl" >/dev/null || fail "wheels: no wheel in '$wheels'; name a folder of .whl files"
[ -z "$results" ] || tar tzf "$results" >/dev/null 2>&1 || fail "results: '$results' is no .tgz; name an earlier call's results.tgz"
[ -f src/reproduce.py ] || fail "the current folder is not the project's root; change to it first"
commit=${PREPACK_BENCH_COMMIT:-}
[[ -z $commit || $commit =~ ^[0-9a-f]{40}$ ]] ||
  fail "PREPACK_BENCH_COMMIT: '$commit'; give the 40 hex digits that \`git rev-parse HEAD\` prints"
[ -e .git ] || [ -n "$commit" ] || echo "note: no .git here and no PREPACK_BENCH_COMMIT: records will name no commit" >&2
[ -n "$commit" ] || [ -z "$(git status --porcelain -- src configs pyproject.toml 2>/dev/null)" ] ||
  echo "note: the tree differs from its commit and no PREPACK_BENCH_COMMIT is given: records will be INVALID" >&2
command -v "$python" >/dev/null || fail "PYTHON: there is no '$python'; name an interpreter"
mkdir -p "$out" && [ -w "$out" ] || fail "out: cannot write '$out'; name a writable folder"
out=$(realpath "$out")

root=$PWD work=$(mktemp -d) worst=0
[ -z "$results" ] || tar xzf "$results" -C "$work" || fail "results: '$results' cannot be unpacked"
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
left() { echo $((seconds - SECONDS)); }
pack() {  # whole or not at all, so that whoever takes it at any moment finds a whole one
  local draft=$work/$BASHPID.tgz
  [ ! -d "$work/results" ] || { tar czf "$draft" --exclude='.tmp-*' -C "$work" results; mv "$draft" "$out/results.tgz"; }
}
finish() { [ -z "${packing:-}" ] || kill "$packing" 2>/dev/null; pack; rm -rf "$work"; }
trap finish EXIT
stage() {  # name, seconds at most, command…
  local name=$1 most=$2 code; shift 2
  [ "$most" -ge 20 ] || { echo "== $name: no time left"; return; }
  echo "== $name (at most $most s)"
  timeout -k 5 "$most" "$@" 2>&1 | tee -a "$out/log.txt" | tail -n 25
  code=${PIPESTATUS[0]}
  echo "== $name: exit code $code, $SECONDS s of $seconds" | tee -a "$out/log.txt"
  [ "$code" -eq 0 ] || worst=1
  pack
}

if [ -n "$wheels" ]; then
  "$python" -m pip install -q --disable-pip-version-check --no-index --no-deps --no-compile --target "$work/site" \
    "$wheels"/*.whl 2>&1 | tail -n 3
  export PYTHONPATH=$work/site:$PYTHONPATH
fi
: >"$out/log.txt"
"$python" scripts/check_environment.py --without-dev  # what is missing is said; what needs it then fails by itself
{ nvidia-smi 2>&1; "$python" -m pip list --disable-pip-version-check 2>/dev/null; uname -a; } >"$out/machine.txt"
(while sleep 20; do pack; done) >/dev/null 2>&1 &
packing=$!

for each in ${stages//,/ }; do
  case $each in
    tests) stage tests $((seconds / 4)) "$python" -m pytest -q -m gpu -n 0 --maxfail=8 --continue-on-collection-errors tests ;;
    smoke) stage smoke $(($(left) / 2)) "$python" -m src.reproduce smoke=true scale="$scale" \
        results_dir="$work/smoke" experiment="$experiment" ;;
    # It may run over by 15 %, which together with packing has to end in time. From the scratch folder, so that records go
    # to one that is named after the machine.
    records)
      minutes=$(awk "BEGIN { printf \"%.2f\", ($(left) - 30) / 1.15 / 60 }")
      cd "$work" || exit 1
      stage records $(($(left) - 15)) "$python" -m src.reproduce scale="$scale" minutes="$minutes" \
        experiment="$experiment"
      cd "$root" || exit 1 ;;
  esac
done
for machine in "$work"/results/*/; do
  [ -d "$machine" ] || continue
  "$python" scripts/share.py pack "$machine" --out "$out/$(basename "$machine").tar.gz" | tee -a "$out/log.txt" | tail -n 5
  [ "${PIPESTATUS[0]}" -eq 0 ] || worst=1
done
pack
ls -l "$out"
exit $worst
