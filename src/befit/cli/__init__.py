"""The command line: verbs, and the only place where a string becomes an object.

    befit puzzle       fit a trained language model to a budget
    befit elastic      train one nested model from which any size is cut
    befit search       search an image classifier for your data that keeps a budget
    befit cut          cut a size out of a nested model or shared weights, in seconds and without training
    befit predict      say what is in a picture, by the network that a search left
    befit export       write a network for vLLM, llama.cpp, the Hugging Face hub or ONNX Runtime
    befit eval         put tasks to a run's models, or to checkpoints and their parent
    befit resume       go on with a run that was stopped
    befit report       draw a run's report anew
    befit solve        choose options under bounds, from a plain table or a run directory
    befit measure      measure the cost table of a parent on this device
    befit bench        measure checkpoints side by side, in PyTorch or in vLLM
    befit propose      let a language model write image classifiers, and keep the best
    befit fingerprint  say which proposed networks are the same, whatever their code looks like
    befit sandbox      say what proposed code is kept from on this machine, by trying it
    befit parent       train the embedded parent, or prepare its tokens

Results go to stdout, progress and errors to stderr. An error that is the user's to fix ends with exit code 2 and one
message; Ctrl-C ends with 130 and loses nothing that was finished.
"""

import errno
import sys
from collections.abc import Callable, Sequence

from befit.cli.evaluate import eval_verb
from befit.cli.export import export_verb
from befit.cli.images import predict_verb, search_verb
from befit.cli.language import elastic_verb, measure_verb, parent_verb, puzzle_verb, solve_verb
from befit.cli.propose import fingerprint_verb, propose_verb
from befit.cli.runs import cut_verb, report_verb, resume_verb
from befit.cli.sandbox import sandbox_verb
from befit.cli.serving import bench_verb
from befit.errors import BefitError

Verb = Callable[[Sequence[str]], None]

RESUMED = ("puzzle", "elastic", "search", "propose", "resume")
"""Verbs that keep what they have finished when they are stopped."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    verbs: dict[str, Verb] = {
        "puzzle": puzzle_verb,
        "elastic": elastic_verb,
        "search": search_verb,
        "cut": cut_verb,
        "predict": predict_verb,
        "export": export_verb,
        "eval": eval_verb,
        "resume": resume_verb,
        "report": report_verb,
        "solve": solve_verb,
        "measure": measure_verb,
        "bench": bench_verb,
        "propose": propose_verb,
        "fingerprint": fingerprint_verb,
        "sandbox": sandbox_verb,
        "parent": parent_verb,
    }
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help") or given[0] not in verbs:
        wrong = bool(given) and given[0] not in ("-h", "--help")
        lines = (__doc__ or "").split("\n\n")[1]
        message = f"befit: there is no verb {given[0]!r}\n\n{lines}" if wrong else f"usage: befit VERB …\n\n{lines}"
        print(message, file=sys.stderr if wrong else sys.stdout)
        return 2 if wrong else 0
    try:
        verbs[given[0]](given[1:])
    except BefitError as error:
        print(f"befit {given[0]}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        where = f" for {error.filename}" if error.filename else ""
        print(
            f"befit {given[0]}: no room on the disk{where}; free some space and run the same command again",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        kept = "; what was finished is kept, the same command goes on from there" if given[0] in RESUMED else ""
        print(f"befit {given[0]}: stopped{kept}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
