// What can be done with a whole trace: downloading it as JSON, and deleting it.

import { useEffect, useRef, useState } from 'preact/hooks'
import { ApiError, getJson, query, send } from '../api/client'
import { traceAt, type Deleted } from '../api/trace'
import { exactCount, plain } from '../core/format'
import type { Params } from '../core/params'
import { address } from '../core/route'
import { allAbout, instant, offset } from '../core/time'
import { go, logIn, useShared } from '../parts/app'
import { Failed } from '../parts/states'

/** The most spans of a page of `GET /traces/{id}`. */
const PAGE = '5000'

type Props = { id: string; name: string; spans: number; list: Params }
type Page = { spans: unknown[]; next_cursor?: string } & Record<string, unknown>

export function TraceTools({ id, name, spans, list }: Props) {
  const { say } = useShared()
  const [got, setGot] = useState<number | null>(null)
  const [error, setError] = useState<ApiError | null>(null)
  const dialog = useRef<HTMLDialogElement>(null)
  const [isAsked, setAsked] = useState(false)
  const download = async () => {
    setGot(0)
    setError(null)
    try {
      save(await wholeTrace(id, setGot), `${id.replace(/[^\w.-]/g, '_')}.json`)
      say('The trace is downloaded')
    } catch (failed) {
      if (!(failed instanceof ApiError)) throw failed
      if (failed.status === 401) logIn()
      setError(failed)
    } finally {
      setGot(null)
    }
  }
  return (
    <span class="group">
      <button type="button" disabled={got !== null} onClick={() => void download()}>{got === null ? 'download' : `${exactCount(got)} of ${exactCount(spans)} spans…`}</button>
      <button type="button" onClick={() => { dialog.current?.showModal(); setAsked(true) }}>delete…</button>
      {error && <Failed error={error} retry={() => void download()} />}
      <dialog ref={dialog} aria-label="Delete the trace" class="confirm" onClose={() => setAsked(false)}>
        {isAsked && <Deletion id={id} name={name} spans={spans} list={list} close={() => dialog.current?.close()} />}
      </dialog>
    </span>
  )
}

function Deletion({ id, name, spans, list, close }: Props & { close: () => void }) {
  const { zone } = useShared()
  const [isDeleting, setDeleting] = useState(false)
  const [error, setError] = useState<ApiError | null>(null)
  const [deleted, setDeleted] = useState<Deleted | null>(null)
  const first = useRef<HTMLButtonElement>(null)
  // What is harmless has the focus: first to keep the trace, then to leave.
  useEffect(() => first.current?.focus(), [deleted])
  const erase = async () => {
    setDeleting(true)
    setError(null)
    try {
      setDeleted((await (await send('DELETE', traceAt(id))).json()) as Deleted)
    } catch (failed) {
      if (!(failed instanceof ApiError)) throw failed
      if (failed.status === 401) logIn()
      setError(failed)
    } finally {
      setDeleting(false)
    }
  }
  if (deleted) {
    const until = Date.parse(deleted.log_aged_out_by)
    return (
      <>
        <h2>Deleted</h2>
        <p>{exactCount(deleted.span_count)} ended {deleted.span_count === 1 ? 'span is' : 'spans are'} deleted. No answer shows them any more.</p>
        <p title={allAbout(until, Date.now(), zone)}>The log will have discarded its records of them by {instant(until, zone)} {offset(until, zone)}.</p>
        <div class="bar"><button type="button" ref={first} onClick={() => { close(); go(address('traces', '', list)) }}>to the traces</button></div>
      </>
    )
  }
  return (
    <>
      <h2>Delete this trace?</h2>
      <p><strong>{plain(name) || '(no name)'}</strong></p>
      <p>{plain(id)}, {exactCount(spans)} {spans === 1 ? 'span' : 'spans'}. This cannot be undone. Metrics still count its spans.</p>
      {error && <Failed error={error} retry={() => void erase()} />}
      <div class="bar">
        <button type="button" ref={first} onClick={close}>keep it</button>
        <button type="button" class="danger" disabled={isDeleting} onClick={() => void erase()}>{isDeleting ? 'deleting…' : 'delete the trace'}</button>
      </div>
    </>
  )
}

/** All of a trace as `GET /traces/{id}` tells it, from as many pages as it has. */
async function wholeTrace(id: string, got: (spans: number) => void): Promise<Page> {
  const spans: unknown[] = []
  let cursor: string | undefined
  for (;;) {
    const more: [string, string][] = cursor === undefined ? [] : [['cursor', cursor]]
    const { next_cursor, spans: found, ...about } = await getJson<Page>(`${traceAt(id)}${query([['limit', PAGE], ...more])}`)
    for (const span of found) spans.push(span)
    got(spans.length)
    if (next_cursor === undefined) return { ...about, spans }
    cursor = next_cursor
  }
}

function save(value: unknown, name: string): void {
  const url = URL.createObjectURL(new Blob([JSON.stringify(value, null, 1)], { type: 'application/json' }))
  const link = document.createElement('a')
  link.href = url
  link.download = name
  link.click()
  // The browser has taken the content once the download has begun.
  setTimeout(() => URL.revokeObjectURL(url), 60_000)
}
