import type { ApiError } from '../api/client'
import { plain } from '../core/format'
import { useShared, type Answer } from './app'

export function Note({ text, kind = 'warning' }: { text: string; kind?: 'warning' | 'error' }) {
  return <p class={`note ${kind}`} role={kind === 'error' ? 'alert' : undefined}>{text}</p>
}

export function Failed({ error, retry }: { error: ApiError; retry: () => void }) {
  return (
    <div class="note error" role="alert">
      <p>{plain(error.message)}</p>
      <p class="dim">{plain(error.request)}{error.status ? `, answered ${error.status}` : ''}</p>
      <button type="button" onClick={retry}>Retry</button>
    </div>
  )
}

/** The state of an answer that has no data to show yet, and its problems if it has. */
export function State({ answer }: { answer: Answer<unknown> }) {
  return (
    <>
      {answer.waiting && <Note text={plain(answer.waiting)} />}
      {answer.error && <Failed error={answer.error} retry={answer.reload} />}
      {!answer.data && !answer.error && <div class="outline">{answer.loading ? 'Loading…' : ''}</div>}
    </>
  )
}

/** The request that a panel comes from, to be repeated in a shell; with a *body* it is a POST. */
export function Curl({ path, body }: { path: string; body?: unknown }) {
  const { about } = useShared()
  const url = new URL(path, location.href).href.split('#')[0]!
  const token = about?.token_needed ? ' -H "Authorization: Bearer $TOKENTRACE_TOKEN"' : ''
  // A quote cannot stand in the quotes of a shell; JSON can write it as an escape.
  const sent = body === undefined ? '' : ` \\\n  -H 'Content-Type: application/json' \\\n  -d '${JSON.stringify(body).replaceAll("'", '\\u0027')}'`
  return (
    <details>
      <summary class="dim">request</summary>
      <pre>{plain(`curl${token} '${url.replaceAll("'", "%27")}'${sent}`, true)}</pre>
    </details>
  )
}
