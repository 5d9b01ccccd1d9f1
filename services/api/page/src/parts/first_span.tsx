// How to report the first span, for every page that has nothing to show before it.

import { useShared } from './app'

const SPAN = '{"model": "gpt-4o", "prompt_tokens": 512, "comp_tokens": 128, "latency_ms": 820, "name": "first span"}'

/** The request that reports a first span to this very server; the page around it shows the span by itself. */
export function FirstSpan() {
  const { about } = useShared()
  const url = new URL(`.${about?.paths.ingest ?? '/spans'}`, location.href).href.split('#')[0]!
  const token = about?.token_needed ? ' \\\n  -H "Authorization: Bearer $TOKENTRACE_TOKEN"' : ''
  return (
    <div class="empty">
      <p>No span has arrived yet. Send the first one; this page shows it by itself:</p>
      <pre>{`curl '${url}'${token} \\\n  -H "Content-Type: application/json" \\\n  -d '${SPAN}'`}</pre>
      <p class="dim">Waiting…</p>
    </div>
  )
}
