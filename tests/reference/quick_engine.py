"""The reference engine of `engine.py` without a loop over requests inside an iteration, for logs of hours.

The same iterations at the same times: who decodes is a count and a sum of contexts, and who ends when is known at the
first token. `tests/recommend/test_quick_engine.py` holds the two equal, request by request.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence

from tests.reference.engine import EngineLimits, KernelTimes


def first_tokens(
    arrivals: Sequence[float],
    prompts: Sequence[int],
    outputs: Sequence[int],
    times: KernelTimes,
    limits: EngineLimits,
) -> list[float]:
    """When each request's first token comes, ms; arguments as of `engine.serve`."""
    found = [float("nan")] * len(arrivals)
    ending: defaultdict[int, list[int]] = defaultdict(list)  # iteration -> requests whose last token it makes
    waiting: deque[int] = deque()
    prefilling: deque[list[int]] = deque()  # [request, tokens still to prefill]
    ahead, decoding, context, kv_used, now, iteration = 0, 0, 0, 0, 0.0, 0
    while ahead < len(arrivals) or waiting or prefilling or decoding:
        while ahead < len(arrivals) and arrivals[ahead] <= now:
            waiting.append(ahead)
            ahead += 1
        budget = limits.max_num_batched_tokens - decoding
        chunks: list[tuple[int, int]] = []
        for entry in prefilling:
            if budget <= 0:
                break
            take = min(budget, entry[1])
            chunks.append((entry[0], take))
            entry[1] -= take
            budget -= take
        while waiting and budget > 0 and decoding + len(prefilling) < limits.max_num_seqs:
            i = waiting[0]
            if prompts[i] + outputs[i] > limits.kv_tokens:  # longer than the pool: refused, as engines do
                waiting.popleft()
                continue
            if kv_used + prompts[i] + outputs[i] > limits.kv_tokens:
                break
            waiting.popleft()
            kv_used += prompts[i] + outputs[i]
            take = min(budget, prompts[i])
            chunks.append((i, take))
            prefilling.append([i, prompts[i] - take])
            budget -= take
        if not decoding and not chunks:
            now = arrivals[ahead] if ahead < len(arrivals) else now
            continue
        length = times.overhead + times.decode(
            max(decoding, 1), context / decoding if decoding else prompts[chunks[0][0]]
        )
        length += sum(times.prefill(prompts[i], decoding) * take / prompts[i] for i, take in chunks)
        now += length
        context += decoding
        while prefilling and prefilling[0][1] == 0:
            i = prefilling.popleft()[0]
            found[i] = now + times.first_token(prompts[i])
            decoding += 1
            context += prompts[i] + 1
            ending[iteration + max(outputs[i], 1) - 1].append(i)
        for i in ending.pop(iteration, ()):
            decoding -= 1
            context -= prompts[i] + max(outputs[i], 1)
            kv_used -= prompts[i] + outputs[i]
        iteration += 1
    return found
