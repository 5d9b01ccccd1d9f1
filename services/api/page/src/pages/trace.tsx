// One trace: what it says of itself, the traces before and after it in the list, its spans, and what can be done with it.

import { useEffect, useMemo, useRef, useState } from 'preact/hooks'
import './trace.css'
import { ApiError, getJson, query, type Options } from '../api/client'
import { getAllRows, getRows, timelineAt, traceAt, type Head, type Neighbours } from '../api/trace'
import { filtersOf } from '../core/filter'
import { count, duration, exactCount, exactMoney, plain, sum } from '../core/format'
import type { Params } from '../core/params'
import { address, type Route } from '../core/route'
import { misunderstood, SPAN_PARAMS } from '../core/spanstate'
import { allAbout, instant, limits, offset, rangeOf } from '../core/time'
import { treeOf, type Row } from '../core/tree'
import { useLiveParams } from '../parts/address'
import { logIn, useAnswer, useShared, useTitle } from '../parts/app'
import { Drawer } from '../parts/drawer'
import { Spans } from '../parts/spans'
import { Curl, Failed, State } from '../parts/states'
import { TraceTools } from './trace_tools'

/** How often a trace with open spans is asked for again, milliseconds. */
const OPEN_MS = 10_000

type Loaded = { id: string; head: Head; rows: Row[] }

export function TracePage({ route }: { route: Route }) {
  const answer = useAnswer(route.id, (options): Promise<Loaded> => getRows(route.id, undefined, options).then((found) => ({ id: route.id, ...found })))
  const loaded = answer.data?.id === route.id ? answer.data : null
  const name = loaded ? plain(loaded.head.name) || '(no name)' : 'Trace'
  const heading = useTitle(name, route.id)
  const { zone } = useShared()
  const started = loaded ? Date.parse(loaded.head.started_at) : 0
  const list = useMemo(() => SPAN_PARAMS.reduce((left, each) => left.without(each), route.params), [route.params])
  return (
    <>
      <div class="bar trace-head">
        <a href={address('traces', '', list)}>‹ traces</a>
        <h1 ref={heading} tabIndex={-1}>{name}</h1>
        {loaded && <span class="dim" title={allAbout(started, Date.now(), zone)}>{instant(started, zone)} {offset(started, zone)}</span>}
        <Around id={route.id} list={list} />
      </div>
      {loaded && <Facts loaded={loaded} list={list} />}
      {misunderstood(route.params).map(([each, why]) => <p class="chip wrong" key={each}>{each}: not understood: {plain(why)}</p>)}
      <State answer={{ ...answer, data: loaded }} />
      {loaded && <Whole loaded={loaded} route={route} list={list} reload={answer.reload} />}
    </>
  )
}

/** What the trace says of itself. */
function Facts({ loaded: { id, head }, list }: { loaded: Loaded; list: Params }) {
  const partly = head.partly_priced_span_count
  return (
    <div class="bar facts-of-trace">
      {head.error_count > 0 && <span class="status-error">✕ {exactCount(head.error_count)} failed</span>}
      <span title="from the first start to the last end">{duration(head.duration_ms)}</span>
      <span title={exactMoney(head.total_cost_usd)}>{partly ? '≥ ' : ''}{sum(head.total_cost_usd, head.unpriced_span_count)}{partly ? `, ${exactCount(partly)} partly priced` : ''}</span>
      <span title={exactCount(head.total_tokens)}>{count(head.total_tokens)} tokens</span>
      <span>{exactCount(head.row_count)} {head.row_count === 1 ? 'span' : 'spans'}</span>
      <span class="dim">session {head.session_id === null ? '–' : <a href={address('session', head.session_id)}>{plain(head.session_id)}</a>}</span>
      <span class="dim">user {head.user_id === null ? '–' : <a href={address('traces', '', list.without('cursor').with({ user_id: head.user_id }))}>{plain(head.user_id)}</a>}</span>
      <TraceTools id={id} name={head.name} spans={head.row_count} list={list} />
    </div>
  )
}

/** The traces before and after this one in the list that it was opened from. */
function Around({ id, list }: { id: string; list: Params }) {
  // Only what the list is made of: the API refuses parameters that it does not know, and the list itself says so.
  const order = list.get('order')
  const asked = [...filtersOf(list), ...(order === undefined ? [] : [['order', order] as const])]
  const range = rangeOf(list)
  const key = JSON.stringify([id, asked, list.get('window'), list.get('from'), list.get('to')])
  const answer = useAnswer(typeof range === 'string' ? null : key, (options) => {
    const pairs = [...asked, ...Object.entries(typeof range === 'string' ? {} : limits(range, Date.now()))]
    return getJson<Neighbours>(`${traceAt(id)}/neighbours${query(pairs)}`, options)
  })
  const place = answer.data
  // What is wrong with a filter is said by the list that has it; here it only has no neighbours.
  if (!place || answer.error) return null
  const to = (other: string | null, text: string, title: string) => (other === null
    ? <span class="dim" aria-disabled="true">{text}</span>
    : <a href={address('trace', other, list)} title={title}>{text}</a>)
  return (
    <nav aria-label="Traces of the list" class="around">
      {to(place.previous, '‹ prev', 'the trace before it in the list')}
      <span class="dim">{place.position === null ? `not among the ${exactCount(place.total)} of the list` : `${exactCount(place.position)} of ${exactCount(place.total)}`}</span>
      {to(place.next, 'next ›', 'the trace after it in the list')}
    </nav>
  )
}

function Whole({ loaded, route, list, reload }: { loaded: Loaded; route: Route; list: Params; reload: () => void }) {
  const live = useLiveParams(route as Route & { page: 'trace' })
  const parts = useParts(loaded)
  const tree = useMemo(() => treeOf(parts.rows), [parts.rows])
  const isOpen = useMemo(() => parts.rows.some((row) => row.status === 'pending'), [parts.rows])
  const now = useNow(loaded.head, isOpen, reload)
  const end = Math.max(loaded.head.duration_ms, isOpen ? now : 0, 1e-6)
  const whole = useMemo(() => ({ from: 0, to: end }), [end])
  const loading = useMemo(() => new Set(tree.order.filter((index) => parts.waiting.has(tree.rows[index]!.span_id))), [tree, parts.waiting])
  const { say } = useShared()
  const asked = route.params.get('span')
  const isElsewhere = asked !== undefined && tree.hidden > 0 && !tree.rows.some((row) => row.span_id === asked)
  useEffect(() => {
    if (parts.loaded > 0) say(`${exactCount(parts.loaded)} spans loaded`)
  }, [parts.loaded, say])
  return (
    <>
      {tree.hidden > 0 && (
        <p class="note">
          {exactCount(tree.rows.length)} of {exactCount(loaded.head.row_count)} spans are loaded: the upper levels. Unfold a span to load what is below it.
          Search, jumps and statistics know the loaded ones only{isElsewhere ? ', and the span of this address is not among them' : ''}.{' '}
          <button type="button" disabled={parts.isLoadingAll} onClick={parts.loadAll}>{parts.isLoadingAll ? 'loading…' : 'load all'}</button>
        </p>
      )}
      {parts.error && <Failed error={parts.error} retry={parts.forget} />}
      <Spans tree={tree} whole={whole} now={now} label={`Spans of ${plain(loaded.head.name) || 'the trace'}`} live={live} reload={reload}
        load={parts.load} loading={loading}
        drawer={({ row, below, tab, choose, close, focus }) => (
          <Drawer below={below} traceId={loaded.id} spanId={isElsewhere ? asked : row.span_id} list={list} tab={tab} choose={choose} close={close} focus={focus} />
        )} />
      <Curl path={timelineAt(loaded.id)} />
    </>
  )
}

/** The rows of a trace: those that came first, and those that were asked for below a row. */
function useParts(loaded: Loaded) {
  const [below, setBelow] = useState<ReadonlyMap<string, Row[]>>(new Map())
  const [whole, setWhole] = useState<Row[] | null>(null)
  const [waiting, setWaiting] = useState<ReadonlySet<string>>(new Set())
  const [isLoadingAll, setLoadingAll] = useState(false)
  const [error, setError] = useState<ApiError | null>(null)
  const left = useRef(new AbortController())
  useEffect(() => () => left.current.abort(), [])
  const rows = useMemo(() => whole ?? joined(loaded.rows, below), [loaded, whole, below])
  const ask = async (act: (options: Options) => Promise<void>) => {
    try {
      await act({ signal: left.current.signal })
    } catch (failed) {
      if (left.current.signal.aborted) return
      if (!(failed instanceof ApiError)) throw failed
      if (failed.status === 401) logIn()
      setError(failed)
    }
  }
  const with_ = (id: string, isWaiting: boolean) => setWaiting((before) => {
    const next = new Set(before)
    if (isWaiting) next.add(id)
    else next.delete(id)
    return next
  })
  const started = useRef(new Set<string>())
  const load = (row: Row) => {
    const id = row.span_id
    if (started.current.has(id)) return
    started.current.add(id)
    with_(id, true)
    void ask(async (options) => {
      const found = await getRows(loaded.id, id, options)
      setBelow((before) => new Map(before).set(id, found.rows))
    }).finally(() => {
      started.current.delete(id)
      with_(id, false)
    })
  }
  const loadAll = () => {
    setLoadingAll(true)
    void ask(async (options) => setWhole(await getAllRows(loaded.id, options))).finally(() => setLoadingAll(false))
  }
  const loadNow = useRef(load)
  loadNow.current = load
  const stable = useMemo(() => (row: Row) => loadNow.current(row), [])
  return {
    rows, waiting, error, isLoadingAll, loadAll, load: stable,
    forget: () => setError(null),
    loaded: rows.length - loaded.rows.length,
  }
}

/** *rows* with those below them that are loaded, and so on below these. */
function joined(rows: readonly Row[], below: ReadonlyMap<string, Row[]>): Row[] {
  const all: Row[] = []
  const waiting: (readonly Row[])[] = [rows]
  while (waiting.length) {
    for (const row of waiting.pop()!) {
      const found = row.hidden ? below.get(row.span_id) : undefined
      if (!found) {
        all.push(row)
        continue
      }
      const { hidden: _, ...shown } = row
      all.push(shown)
      waiting.push(found)
    }
  }
  return all
}

/** How long ago the trace began, milliseconds. While a span is open it goes on, and the trace is asked for again. */
function useNow(head: Head, isOpen: boolean, reload: () => void): number {
  const started = Date.parse(head.started_at)
  const [now, set] = useState(() => Date.now() - started)
  const again = useRef(reload)
  again.current = reload
  useEffect(() => {
    if (!isOpen) return
    let asked = Date.now()
    const tick = () => {
      if (document.hidden) return
      set(Date.now() - started)
      if (Date.now() - asked < OPEN_MS) return
      asked = Date.now()
      again.current()
    }
    tick()
    const timer = setInterval(tick, 1000)
    return () => clearInterval(timer)
  }, [isOpen, started])
  return now
}
