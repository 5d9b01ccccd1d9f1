// The scores of a span, and a form that adds one.

import { useEffect, useState } from 'preact/hooks'
import { ApiError, getJson, send } from '../api/client'
import { spanAt } from '../api/trace'
import type { StoredSpan } from '../api/types'
import { exactScore, plain, score } from '../core/format'
import { logIn, useShared } from './app'
import { Failed, Note } from './states'

/** How often, and how long apart, the span is asked for until it has a new score, milliseconds. */
const TRIES = 12
const PAUSE_MS = 400

export function Scores({ traceId, span, reload }: { traceId: string; span: StoredSpan; reload: () => void }) {
  const { say } = useShared()
  const [name, setName] = useState('eval.score')
  const [value, setValue] = useState('')
  const [error, setError] = useState<ApiError | null>(null)
  const [state, setState] = useState<'' | 'sending' | 'late'>('')
  const [left] = useState(() => new AbortController())
  useEffect(() => () => left.abort(), [left])
  const scores = Object.entries(span.attributes ?? {}).filter(([key]) => key.startsWith('eval.'))
  const post = async (scored: string, number: number | string | null) => {
    setState('sending')
    setError(null)
    try {
      await send('POST', './scores', { trace_id: traceId, span_id: span.span_id, name: scored, value: number })
      const isThere = await appears(traceId, span.span_id, scored.startsWith('eval.') ? scored : `eval.${scored}`, number, left.signal)
      if (left.signal.aborted) return
      setState(isThere ? '' : 'late')
      if (isThere) {
        setValue('')
        say(number === null ? 'Score removed' : 'Score added')
      }
      reload()
    } catch (failed) {
      if (left.signal.aborted) return
      if (!(failed instanceof ApiError)) throw failed
      if (failed.status === 401) logIn()
      setState('')
      setError(failed)
    }
  }
  if (span.ended_at === null) return <p>The span is open: it can be scored once it has ended.</p>
  return (
    <>
      {scores.length ? (
        <table>
          <thead><tr><th scope="col">score</th><th scope="col" class="number">value</th><th scope="col" aria-label="remove" /></tr></thead>
          <tbody>
            {scores.map(([key, held]) => (
              <tr key={key}>
                <td>{plain(key)}</td>
                <td class="number" title={typeof held === 'number' ? exactScore(held) : undefined}>{typeof held === 'number' ? score(held) : plain(JSON.stringify(held))}</td>
                <td>{typeof held === 'number' && <button type="button" aria-label={`remove ${plain(key)}`} disabled={state === 'sending'} onClick={() => void post(key, null)}>remove</button>}</td>
              </tr>
            ))}
          </tbody>
        </table>
      ) : <p>The span has no scores.</p>}
      <form class="bar" onSubmit={(event) => { event.preventDefault(); void post(name, numberOr(value)) }}>
        <label for="score-name" class="dim">name</label>
        <input id="score-name" size={14} value={name} onInput={(event) => setName(event.currentTarget.value)} />
        <label for="score-value" class="dim">value, 0 to 1</label>
        <input id="score-value" size={6} inputMode="decimal" value={value} onInput={(event) => setValue(event.currentTarget.value)} />
        <button disabled={state === 'sending'}>{state === 'sending' ? 'adding…' : 'add'}</button>
      </form>
      <p class="dim">A score replaces the one of the same name. <code>eval.score</code> counts in quality.</p>
      {error && <Failed error={error} retry={() => setError(null)} />}
      {state === 'late' && <Note text="The score is accepted, but the store does not show it yet. Ask again in a moment with r." />}
    </>
  )
}

/** What was written as a number, or as it is if it is none: the API says what is wrong with it. */
function numberOr(written: string): number | string {
  const number = Number(written)
  return written.trim() === '' || !Number.isFinite(number) ? written : number
}

/** Whether the span has, or has no longer, the score within a few seconds: it goes through the log to the store. */
async function appears(traceId: string, spanId: string, name: string, value: number | string | null, signal: AbortSignal): Promise<boolean> {
  for (let tries = 0; tries < TRIES; tries++) {
    const span = await getJson<StoredSpan>(spanAt(traceId, spanId), { signal })
    const held = span.attributes?.[name]
    if (value === null ? held === undefined : typeof held === 'number' && Math.abs(held - Number(value)) < 1e-9) return true
    await new Promise((resolve) => setTimeout(resolve, PAUSE_MS))
  }
  return false
}
