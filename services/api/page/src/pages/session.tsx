import './session.css'
import './sessions.css'
import { useCallback, useEffect, useMemo, useRef, useState } from 'preact/hooks'
import { ApiError, getJson, query, send } from '../api/client'
import { getNodes, graphAt, sessionAt, type Session } from '../api/sessions'
import { count, cut, duration, exactCount, exactMoney, plain, sum } from '../core/format'
import { Params } from '../core/params'
import { address, type Route } from '../core/route'
import { rowsOf } from '../core/session_rows'
import { misunderstood, rowOf, SPAN_PARAMS } from '../core/spanstate'
import { allAbout, instant, offset } from '../core/time'
import { treeOf } from '../core/tree'
import { useLiveParams } from '../parts/address'
import { useAnswer, useShared, useTitle } from '../parts/app'
import { LongText } from '../parts/attributes'
import { Conversation, MESSAGES_ON_A_PAGE } from '../parts/conversation'
import { Drawer } from '../parts/drawer'
import { Spans } from '../parts/spans'
import { Curl, Failed, State } from '../parts/states'
import { LIST_PARAMS, STATUS_SIGNS } from './sessions'

/** A filter by an attribute leads to all traces, not to those of a list. */
const NO_FILTERS = new Params()
const OFFSET = /^[1-9]\d{0,8}$/
/** Longest part of an error that is shown without being asked for, characters. */
const MOST_TEXT = 2000

export function SessionPage({ route }: { route: Route }) {
  const id = route.id
  const { about } = useShared()
  const live = useLiveParams({ ...route, page: 'session' })
  const skipped = OFFSET.test(live.params.get('offset') ?? '') ? Number(live.params.get('offset')) : 0
  const path = `${sessionAt(id)}/details${query([['limit', String(MESSAGES_ON_A_PAGE)], ['offset', String(skipped)]])}`
  const details = useAnswer(path, (options) => getJson<Session>(path, options), { refresh: true })
  const session = details.data
  const heading = useTitle(plain(cut(session?.label || id, 80)), `session/${id}`)
  // The spans are asked for again only if there are other ones.
  const state = session && `${id}\n${session.totalSpans}\n${session.openSpans}`
  const graph = useAnswer(state, (options) => getNodes(id, options))
  const costs = useMemo(() => new Set(about?.kinds.filter((kind) => kind.counts_as_cost).map((kind) => kind.name)), [about])
  const loaded = useMemo(() => {
    if (!graph.data) return null
    const { rows, started, whole } = rowsOf(graph.data, costs)
    return { tree: treeOf(rows), started, whole }
  }, [graph.data, costs])
  const now = useNow(loaded)
  const named = loaded ? rowOf(loaded.tree, live.params.get('span') ?? '') : -1
  const selected = loaded?.tree.rows[named >= 0 ? named : (loaded.tree.order[0] ?? 0)]
  const spans = useRef<HTMLElement>(null)
  const back = useMemo(() => [...SPAN_PARAMS, 'offset'].reduce((params, name) => params.without(name), live.params), [live.params])
  const choose = useCallback((name: string) => {
    live.change((params) => params.with({ span: name }), true)
    spans.current?.scrollIntoView({ block: 'nearest' })
    spans.current?.querySelector<HTMLElement>('[role=treegrid]')?.focus()
  }, [live.change])
  return (
    <>
      <p class="session-back"><a href={address('sessions', '', back)}>‹ sessions</a></p>
      <div class="bar session-head">
        <h1 ref={heading} tabIndex={-1}>{plain(cut(session?.label || id, 200))}</h1>
        {session && <span class={`status-${session.status}`}>{STATUS_SIGNS[session.status]}{session.status}</span>}
        {session?.status === 'active' && <EndSession id={id} name={session.label || id} ended={details.reload} />}
      </div>
      {wrongs(live.params).map(([name, why]) => <p class="chip wrong" key={name}>{plain(name)}: not understood{why && `: ${plain(why)}`}</p>)}
      {(details.error || details.waiting || !session) && <State answer={details} />}
      {session && (
        <div class={details.error ? 'stale' : ''}>
          <Facts session={session} />
          {session.error && <SessionError error={session.error} choose={choose} />}
          <Conversation session={session} offset={skipped} nodes={graph.data} choose={choose}
            turn={(next) => live.change((params) => params.with({ offset: next > 0 ? String(next) : null }), true)} />
          <Curl path={path} />
          <section ref={spans} aria-label="Spans">
            <h2>Spans {selected && <a class="session-trace" href={address('trace', selected.trace_id!, [['span', selected.span_id]])}>open the trace of the selected one</a>}</h2>
            {(graph.error || graph.waiting || !graph.data) && <State answer={graph} />}
            {loaded && (
              <Spans tree={loaded.tree} whole={wholeOf(loaded, now)} now={now} label={`Spans of ${plain(session.label || id)}`} live={live}
                reload={details.reload}
                drawer={({ row, below, tab, focus, choose: turn, close }) => (
                  <Drawer below={below} traceId={row.trace_id!} spanId={row.span_id} list={NO_FILTERS} tab={tab} focus={focus} choose={turn} close={close} />
                )} />
            )}
            <Curl path={graphAt(id)} />
          </section>
        </div>
      )}
    </>
  )
}

/** What of the address is not understood: the name and why. Parameters of the list are kept for the way back. */
function wrongs(params: Params): [string, string][] {
  const known = new Set<string>([...SPAN_PARAMS, ...LIST_PARAMS, 'offset'])
  const unknown = params.names().filter((name) => !known.has(name)).map((name): [string, string] => [name, ''])
  const from = params.get('offset')
  const bad: [string, string][] = from === undefined || from === '0' || OFFSET.test(from) ? [] : [['offset', `'${from}' is no number of messages`]]
  return [...unknown, ...bad, ...misunderstood(params)]
}

type Loaded = { tree: ReturnType<typeof treeOf>; started: number; whole: number }

/** The time that is shown: all spans, and open ones until now. A session without any duration gets the least one. */
function wholeOf(loaded: Loaded, now: number): { from: number; to: number } {
  const isOpen = loaded.tree.rows.some((row) => row.status === 'pending')
  return { from: 0, to: Math.max(loaded.whole, isOpen ? now : 0, 1e-6) }
}

/** How long ago the first span began, milliseconds; it goes on while a span is open. */
function useNow(loaded: Loaded | null): number {
  const isOpen = !!loaded?.tree.rows.some((row) => row.duration_ms === null)
  const [now, set] = useState(() => Date.now())
  useEffect(() => {
    if (!isOpen) return
    set(Date.now())
    const timer = setInterval(() => document.hidden || set(Date.now()), 1000)
    return () => clearInterval(timer)
  }, [isOpen, loaded])
  return Math.max(now - (loaded?.started ?? now), 0)
}

function Facts({ session }: { session: Session }) {
  const { zone } = useShared()
  const started = Date.parse(session.startedAt)
  const isGoingOn = session.endedAt === undefined && session.openSpans > 0
  return (
    <dl class="sessions-cards">
      <div><dt>Started</dt><dd title={allAbout(started, Date.now(), zone)}>{instant(started, zone).slice(0, 19)}</dd>
        <dd class="dim">{offset(started, zone)}, came by {plain(session.source)}</dd></div>
      <div><dt>Duration</dt><dd>{duration(session.duration)}</dd>
        <dd class="dim">{session.endedAt !== undefined ? 'until it was ended' : isGoingOn ? 'until its latest end so far' : 'until its last span ended'}</dd></div>
      <div><dt>Spans</dt><dd title={exactCount(session.totalSpans)}>{count(session.totalSpans)}</dd>
        <dd class="dim">{count(session.openSpans)} open, {count(session.errorCount)} with errors</dd></div>
      <div><dt>Tokens</dt><dd title={`${exactCount(session.totalInputTokens)} → ${exactCount(session.totalOutputTokens)}`}>
        {count(session.totalInputTokens)} → {count(session.totalOutputTokens)}</dd><dd class="dim">in → out</dd></div>
      <div><dt>Cost</dt><dd title={exactMoney(session.totalCostUSD)}>{sum(session.totalCostUSD, session.unpricedSpanCount)}</dd>
        <dd class="dim">{session.userId ? <>user <a href={address('sessions', '', [['userId', session.userId]])}>{plain(cut(session.userId, 60))}</a></> : 'without a user'}</dd></div>
    </dl>
  )
}

function SessionError({ error, choose }: { error: NonNullable<Session['error']>; choose: (span: string) => void }) {
  const { trace_id, span_id, stack } = error
  return (
    <div class="note error" role="group" aria-label="Error of the session">
      <p><strong>✕ </strong><LongText text={error.message} most={MOST_TEXT} /></p>
      {trace_id !== undefined && span_id !== undefined && (
        <button type="button" onClick={() => choose(`${trace_id}/${span_id}`)}>show its span</button>
      )}
      {stack && <details><summary>stack trace</summary><pre><LongText text={stack} /></pre></details>}
    </div>
  )
}

function EndSession({ id, name, ended }: { id: string; name: string; ended: () => void }) {
  const { say } = useShared()
  const dialog = useRef<HTMLDialogElement>(null)
  const [problem, setProblem] = useState<ApiError | null>(null)
  const [isSending, setSending] = useState(false)
  const end = async () => {
    setSending(true)
    setProblem(null)
    try {
      await send('POST', `${sessionAt(id)}/end`, {})
    } catch (error) {
      if (!(error instanceof ApiError)) throw error
      setProblem(error)
      return
    } finally {
      setSending(false)
    }
    dialog.current?.close()
    say('Session ended')
    // The button goes with the state, and the focus would go with it.
    document.querySelector<HTMLElement>('h1')?.focus()
    ended()
  }
  return (
    <>
      <button type="button" onClick={() => { setProblem(null); dialog.current?.showModal() }}>End session</button>
      <dialog ref={dialog} aria-labelledby="end-title">
        <h2 id="end-title">End the session “{plain(cut(name, 80))}”?</h2>
        <p>It counts as completed from now on. This cannot be taken back; spans that still arrive are added to it.</p>
        {problem && <Failed error={problem} retry={() => void end()} />}
        <div class="bar">
          <button type="button" disabled={isSending} onClick={() => void end()}>End session</button>
          <button type="button" onClick={() => dialog.current?.close()}>Cancel</button>
        </div>
      </dialog>
    </>
  )
}
