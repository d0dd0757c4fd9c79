"""Traffic as it moves to a version."""

from __future__ import annotations

from dataclasses import dataclass

from examples.shared.stages import console
from examples.shared.waiting import DEADLINE_SECONDS, within

from headrace.api.inference.v1 import inference_pb2 as inference
from headrace.cli.plain import plain
from headrace.client import HeadraceClient

# Whose last shares Envoy is told of before they are true for callers.
MOVED = {"SUCCEEDED", "ROLLED_BACK"}


@dataclass(frozen=True)
class Course:
    """What a rollout was seen to do."""

    state: str
    # The shares that the new version had one after the other, per cent.
    steps: list[int]


async def follow(client: HeadraceClient, deployment: str, version: int) -> Course:
    """Show each version's share of the traffic until the rollout of `version` has ended."""
    steps: list[int] = []
    shown = ""
    request = inference.WatchDeploymentRequest(name=deployment)
    async with within(DEADLINE_SECONDS, f"the rollout of version {version}"):
        async for seen in client.inference.WatchDeployment(request):
            # Until its own rollout begins, the last one's is told.
            if seen.rollout.to_version != version:
                continue
            state = str(plain(seen.rollout)["state"])
            if (line := _line(state, seen)) != shown:
                console.print(line)
                shown = line
            if seen.rollout.weight and seen.rollout.weight not in steps:
                steps.append(seen.rollout.weight)
            if state == "FAILED" or (state in MOVED and seen.ready):
                return Course(state, steps)
    raise RuntimeError(f"deployment {deployment} is not watched any more")


def _line(state: str, deployment: inference.Deployment) -> str:
    shares = "  ".join(f"v{item.version} {item.weight:3} %" for item in deployment.traffic)
    return f"   {state:<11}  {shares:<18}  {deployment.rollout.message}".rstrip()
