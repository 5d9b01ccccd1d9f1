"""Print alert events as they are published; stop after as many seconds as the argument says, or after 60."""

import asyncio
import json
import os
import sys

import nats
from nats.aio.msg import Msg


async def show(message: Msg) -> None:
    event = json.loads(message.data)
    print(message.subject, event["status"], event["message"], flush=True)


async def main(seconds: float) -> None:
    client = await nats.connect(os.environ.get("TOKENTRACE_URL", "nats://127.0.0.1:4222"))
    await client.subscribe("tokentrace.alerts.>", cb=show)
    print("following", flush=True)
    await asyncio.sleep(seconds)
    await client.close()


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1]) if len(sys.argv) > 1 else 60.0))
