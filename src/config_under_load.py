"""What of a configuration says how prompts arrive and who is served next: whether it can be done."""

from __future__ import annotations

from .cli import UserError
from .config import SERVING, Config

ONLY_UNDER_LOAD = (
    "rate",
    "burstiness",
    "trace",
    "policy",
    "token_budget",
    "lookahead",
    "buckets",
    "ageing",
    "clock",
    "slo_ms",
)
MOST_BUCKETS = 1000
OF_ARRIVALS = {"burstiness": "gamma", "trace": "trace"}
OF_POLICY = {"token_budget": "token-budget", "lookahead": "lookahead", "buckets": "buckets", "ageing": "shortest-first"}


def check(config: Config) -> None:
    """See that what says how prompts arrive and who is served next can be done.

    Raises:
        UserError: the first setting that is wrong.
    """
    default = Config()
    changed = [name for name in ONLY_UNDER_LOAD if getattr(config, name) != getattr(default, name)]
    if not config.under_load:
        if changed:
            problem = "has no effect with arrivals=all, where every prompt is there from the start"
            raise UserError(changed[0], problem, "add arrivals=poisson, or leave it out")
        return
    for names, chosen, setting in ((OF_ARRIVALS, config.arrivals, "arrivals"), (OF_POLICY, config.policy, "policy")):
        for name, needed in names.items():
            if name in changed and chosen != needed:
                raise UserError(
                    name, f"has no effect with {setting}={chosen}", f"use {setting}={needed}, or leave it out"
                )
    for setting, number in (("rate", config.rate), ("burstiness", config.burstiness), ("slo_ms", config.slo_ms)):
        if number is not None and not 0 < number < float("inf"):  # also refuses NaN
            raise UserError(setting, f"{number:g}", "give a number above 0")
    for setting, number, least, most in (
        ("rate", config.rate, 1e-4, 1e6),
        ("burstiness", config.burstiness, 0.01, 100),
    ):
        if number is not None and not least <= number <= most:
            raise UserError(setting, f"{number:g}", f"give {least:g} to {most:g}")
    for setting, count in (("token_budget", config.token_budget), ("lookahead", config.lookahead)):
        if count is not None and count < 1:
            raise UserError(setting, f"{count} is too small", "give a whole number of 1 or more")
    if config.lookahead is not None and config.lookahead < config.batch_size:
        problem = f"{config.lookahead} is less than a batch (batch_size={config.batch_size})"
        raise UserError("lookahead", problem, "look at one batch or more")
    if not 0 < config.ageing < float("inf"):
        raise UserError(
            "ageing", f"{config.ageing:g} tokens a second", "give a number above 0, or nobody long is served"
        )
    ends = config.buckets if isinstance(config.buckets, list) else None
    whole = all(type(end) is int and end > 0 for end in (ends if ends is not None else [config.buckets]))
    many = ends is None and whole and config.buckets > MOST_BUCKETS
    if not whole or many or (ends is not None and (not ends or sorted(set(ends)) != ends)):
        problem = f"{config.buckets}"
        raise UserError("buckets", problem, "give how many, or the lengths at which they end, ascending: [64,256,1024]")
    if config.searches_rate and config.slo_ms is None:
        problem = "is needed to look for the largest rate that keeps it"
        raise UserError("slo_ms", problem, "give milliseconds to the first token, or rate= prompts a second")
    for setting, wrong, remedy in (
        ("metric", config.metric != "ttft", "add metric=ttft: what is waited for is the first token"),
        ("protocol", config.protocol != "modern", "use protocol=modern: the authors' code serves no arrivals"),
        ("faults", bool(config.faults), "leave them out: they are of the authors' measuring loop"),
        ("num_prompts", config.num_prompts < 2, "give 2 or more: one prompt has no rate"),
    ):
        if wrong:
            raise UserError(setting, f"{getattr(config, setting)} does not go with arrivals={config.arrivals}", remedy)
    if config.clock != "real" and (served := set(config.compared_methods) & set(SERVING)):
        raise UserError("clock", f"{sorted(served)[0]} serves in real time only", "use clock=real, or leave it out")
