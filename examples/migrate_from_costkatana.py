"""
Move a program from Cost Katana's trace client: the calls keep their names and their order.

Before, in TypeScript:

    const client = new TraceClient({ apiKey, projectId: "shop" });
    const { traceId, sessionId } = await client.startSpan({ name: "answer", type: "llm", metadata: { userId } });
    await client.recordMessage({ sessionId, traceId, role: "user", content: question });
    await client.endSpan(traceId, { status: "ok", aiModel: "gpt-4o", tokens: { input: 512, output: 128 } });

After, in Python: the function ``answer``. The service is your own, so its URL has to be given, or the variable
TOKENTRACE_API_URL. A cost that is not given is computed.
"""

import os

from tokentrace import LocalTraceService, TraceClient, TraceService


def answer(client: TraceService, user_id: str, question: str) -> str:
    span = client.start_span("answer", "llm", metadata={"userId": user_id})
    client.record_message(span.session_id, span.trace_id, "user", question)
    client.end_span(span.trace_id, "ok", model="gpt-4o", input_tokens=512, output_tokens=128)
    client.end_session(span.session_id)
    return span.session_id


def main() -> None:
    # A pipeline without http_server.auth_token takes any key.
    client = TraceClient(
        api_key=os.environ.get("TOKENTRACE_AUTH_TOKEN", "any"),
        project_id="shop",
        api_url=os.environ.get("TOKENTRACE_API_URL", "http://127.0.0.1:9090"),
    )
    print(f"sent session {answer(client, 'alice', 'What is the answer?')}, {client.failures} failures")

    # In tests, and without a pipeline, the same function keeps its sessions in the process.
    with LocalTraceService() as local:
        graph = local.session_graph(answer(local, "alice", "What is the answer?"))
    print(f"kept a span of {graph['nodes'][0]['costUSD']} USD")


if __name__ == "__main__":
    main()
