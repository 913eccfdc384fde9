"""llama-server's command line over the server inside the `xllamacpp` wheel.

Copied beside the unpacked wheel and run there by path, so it knows nothing of Tightrope. Owns the
translation of the flags that `tightrope.adapters.llamacpp` uses, and of LLAMA_API_KEY; an unknown flag is refused.
Requests never touch Python: llama.cpp's own HTTP server answers them on native threads.
"""

import argparse
import os
import signal
import sys
from typing import Any


def main() -> int:
    """Serve until SIGTERM or SIGINT; status 1 when the model or the port cannot be had."""
    import xllamacpp

    options = _parse(sys.argv[1:])
    if options.version:
        print(f"version: xllamacpp {xllamacpp.__version__}")
        return 0
    if not options.model:
        print("llama_server: --model FILE is needed", file=sys.stderr)
        return 2
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        server = xllamacpp.Server(_parameters(xllamacpp.CommonParams(), options))
    except RuntimeError as error:
        print(f"llama_server: {error}", file=sys.stderr)
        return 1
    print(f"llama_server: listening on {server.listening_address}", flush=True)
    signal.sigwait(signals)
    # Native threads may be in the middle of a batch: an orderly shutdown would wait for all streams.
    sys.stdout.flush()
    os._exit(0)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="llama_server", description=__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="store_true")
    parser.add_argument("-m", "--model")
    parser.add_argument("-a", "--alias")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("-t", "--threads", type=int, default=-1)
    parser.add_argument("-tb", "--threads-batch", type=int)
    parser.add_argument("-np", "--parallel", type=int, default=1)
    parser.add_argument("-c", "--ctx-size", type=int, default=0)
    parser.add_argument("-b", "--batch-size", type=int, default=2048)
    parser.add_argument("-ub", "--ubatch-size", type=int, default=512)
    parser.add_argument("-cram", "--cache-ram", type=int, default=8192)
    parser.add_argument("-lv", "--verbosity", type=int, default=3)
    parser.add_argument("--poll", type=int, default=50)
    parser.add_argument("--threads-http", type=int, default=-1)
    parser.add_argument("--metrics", action="store_true")
    parser.add_argument("--slots", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--webui", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--cache-prompt", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--warmup", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args(arguments)


def _parameters(parameters: Any, options: argparse.Namespace) -> Any:
    parameters.model.path = options.model
    parameters.hostnames = [options.host]
    parameters.port = options.port
    if options.alias:
        parameters.model_alias = {options.alias}
    batch_threads = options.threads if options.threads_batch is None else options.threads_batch
    for processor, threads in (
        (parameters.cpuparams, options.threads),
        (parameters.cpuparams_batch, batch_threads),
    ):
        processor.n_threads = threads
        processor.poll = options.poll
    parameters.n_parallel = options.parallel
    parameters.n_ctx = options.ctx_size
    parameters.n_batch = options.batch_size
    parameters.n_ubatch = options.ubatch_size
    parameters.cache_ram_mib = options.cache_ram
    parameters.verbosity = options.verbosity
    parameters.n_threads_http = options.threads_http
    parameters.endpoint_metrics = options.metrics
    parameters.endpoint_slots = options.slots
    parameters.ui = options.webui
    parameters.cache_prompt = options.cache_prompt
    parameters.warmup = options.warmup
    key = os.environ.get("LLAMA_API_KEY")
    if key:
        parameters.api_keys = [key]
    # Settings that only matter with an accelerator; looking for one makes every start slower.
    parameters.n_gpu_layers = 0
    parameters.fit_params = False
    return parameters


if __name__ == "__main__":
    raise SystemExit(main())
