"""The training programs that trials run, all behind one contract: `Train` in tune/config/function.py."""

from tune.config.function import Train
from tune.config.spec import BuiltinSearch, ProgramSearch, SearchSpec


def open_program(search: SearchSpec, threads: int, gpus: float, processes: int, output: str) -> Train:
    """The training program of a search, for a worker with `gpus` GPUs and `processes` of `threads` CPU threads each.

    Only the built-in training has more than one process. `output` is the path of the file that keeps what a command prints.
    """
    if isinstance(search, ProgramSearch) and search.options.command:
        from tune.ray_backend.programs.command import command_program

        return command_program(search, threads, gpus, output)
    if isinstance(search, ProgramSearch):
        from tune.ray_backend.programs.function import function_program

        return function_program(search)
    assert isinstance(search, BuiltinSearch)
    if processes > 1:
        from tune.ray_backend.programs.partners import start

        start(processes)  # before the import of torch below
    from tune.ray_backend.programs.builtin import builtin_program

    return builtin_program(search, threads, gpus, processes)
