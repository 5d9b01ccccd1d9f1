// What is known of one span: its receipt, messages, attributes and scores, and all of it as JSON. Everything is text.

import type { ComponentChild } from 'preact'
import { useEffect, useRef } from 'preact/hooks'
import { getJson } from '../api/client'
import { spanAt } from '../api/trace'
import type { StoredSpan } from '../api/types'
import { duration, exactCount, exactMoney, money, plain } from '../core/format'
import type { Params } from '../core/params'
import { address } from '../core/route'
import { TABS, type Tab } from '../core/spanstate'
import { allAbout, instant, offset } from '../core/time'
import { useAnswer, useShared } from './app'
import { Attributes } from './attributes'
import { Json } from './json'
import { Messages } from './messages'
import { ReceiptOf } from './receipt'
import { Scores } from './scores'
import { Curl, Note, State } from './states'
import { mark } from './status'

type Props = {
  traceId: string
  spanId: string
  /** The filters of the list that the trace was opened from: a filter by an attribute is added to them. */
  list: Params
  /** Of a span with others below it: what its row shows, the sum of what counts in it and below it, and all its digits. */
  below: readonly [string, string] | null
  tab: Tab
  choose: (tab: Tab) => void
  close: () => void
  /** Whether the tab gets the focus: the drawer was opened by a key. */
  focus: boolean
}

export function Drawer({ traceId, spanId, list, below, tab, choose, close, focus }: Props) {
  const base = spanAt(traceId, spanId)
  const span = useAnswer(base, (options) => getJson<StoredSpan>(base, options))
  const chosen = useRef<HTMLButtonElement>(null)
  useEffect(() => {
    if (focus) chosen.current?.focus()
  }, [focus, tab])
  const turn = (event: KeyboardEvent) => {
    const step = event.key === 'ArrowRight' ? 1 : event.key === 'ArrowLeft' ? -1 : 0
    if (!step) return
    event.preventDefault()
    event.stopPropagation()
    choose(TABS[(TABS.indexOf(tab) + step + TABS.length) % TABS.length]!)
  }
  // The last answer stays, dimmed, while the next one loads: a panel that empties at every step would flicker.
  const isCurrent = span.data?.span_id === spanId
  const shown = isCurrent || !span.error ? span.data : null
  const own = isCurrent ? span.data : null
  const dimmed = isCurrent ? undefined : 'stale'
  const requests = { receipt: `${base}/receipt`, messages: `${base}/messages` } as Partial<Record<Tab, string>>
  // With keys, or the tabs would be made anew, and lose the focus, when the head appears above them.
  return (
    <aside aria-label="Span" aria-busy={!isCurrent}>
      <div class="bar">
        <h2 class={dimmed}>{shown ? plain(String(shown.name)) || '(no name)' : '…'}</h2>
        <button type="button" aria-label="close the span" onClick={close}>×</button>
      </div>
      {shown ? <div key="head" class={dimmed}><Head span={shown} list={list} below={isCurrent ? below : null} /></div> : <State answer={{ ...span, data: null }} />}
      <div key="tabs" role="tablist" aria-label="About the span" onKeyDown={turn}>
        {TABS.map((name) => (
          <button key={name} type="button" role="tab" id={`tab-${name}`} aria-selected={name === tab} aria-controls="panel"
            tabIndex={name === tab ? 0 : -1} ref={name === tab ? chosen : null} onClick={() => choose(name)}>
            {name === 'json' ? 'JSON' : name}
          </button>
        ))}
      </div>
      <div key="panel" role="tabpanel" id="panel" aria-labelledby={`tab-${tab}`} tabIndex={-1} class={dimmed}>
        {tab === 'receipt' && <ReceiptOf path={`${base}/receipt`} isOpen={own?.ended_at === null} />}
        {tab === 'messages' && <Messages path={`${base}/messages`} />}
        {tab === 'attributes' && shown && <Attributes key={shown.span_id} span={shown} list={list} />}
        {tab === 'scores' && own && <Scores key={spanId} traceId={traceId} span={own} reload={span.reload} />}
        {tab === 'json' && shown && <Json key={shown.span_id} value={shown} />}
      </div>
      <Curl path={requests[tab] ?? base} />
    </aside>
  )
}

function Head({ span, list, below }: { span: StoredSpan; list: Params; below: Props['below'] }) {
  const { zone, about } = useShared()
  const isRollUp = about?.kinds.some((kind) => kind.name === span.kind && !kind.counts_as_cost)
  const started = Date.parse(String(span.started_at))
  const isOpen = span.ended_at === null
  const found = (name: string) => {
    const value = text(span[name])
    return value && <a href={address('traces', '', list.without('cursor').with({ [name]: String(span[name]) }))} title="the traces with it">{value}</a>
  }
  const session = text(span.session_id)
  const facts: [string, ComponentChild][] = [
    ['kind', `${span.kind}`],
    ['model', [text(span.model), text(span.provider)].filter(Boolean).join(' · ')],
    ['cost', below && <><span title={below[1]}>{below[0]}</span> in it and below it</>],
    [below ? 'its own' : 'cost', isOpen ? null
      : isRollUp ? `none: what a span of the kind ${span.kind} costs is that of the calls below it`
        : <span title={exactMoney(number(span.cost_usd))}>{money(number(span.cost_usd))}</span>],
    ['duration', isOpen ? (span.status === 'abandoned' ? 'never ended' : 'open') : duration(milliseconds(span, 'latency'))],
    ['first token', span.ttft_ms === undefined ? null : `after ${duration(milliseconds(span, 'ttft'))}`],
    ['tokens', span.total_tokens === undefined ? null : tokens(span)],
    ['caller', found('caller')],
    ['user', found('user_id')],
    ['session', session && <a href={address('session', String(span.session_id))}>{session}</a>],
    ['scope', text(span.scope)],
  ]
  return (
    <>
      {span.status !== 'ok' && <p class={`status-${String(span.status)}`}>{mark(String(span.status))}{String(span.status)}</p>}
      {text(span.error) && <p class="status-error error-text">error: {plain(String(span.error), true)}</p>}
      {span.counted === false && <Note text={`No sum has this span: its call was told before${span.conflicting ? ', with other tokens or another cost' : ''}.`} />}
      {typeof span.later_versions === 'number' && <Note text={`The call was told ${exactCount(span.later_versions)} more times; the first telling counts.`} />}
      {Array.isArray(span.adjusted) && span.adjusted.map((each) => <Note key={String(each)} text={plain(String(each))} />)}
      <dl class="facts">
        <dt>started</dt>
        <dd title={allAbout(started, Date.now(), zone)}>{instant(started, zone)} {offset(started, zone)}</dd>
        {facts.map(([name, value]) => value && [<dt key={name}>{name}</dt>, <dd key={`${name}=`}>{value}</dd>])}
      </dl>
    </>
  )
}

function text(value: unknown): string | null {
  return typeof value === 'string' && value ? plain(value) : null
}

function number(value: unknown): number | null | undefined {
  return typeof value === 'number' || value === null ? value : undefined
}

/** A time of a span: its nanoseconds if they are not whole milliseconds. */
function milliseconds(span: StoredSpan, name: string): number | undefined {
  const [ns, ms] = [span[`${name}_ns`], span[`${name}_ms`]]
  return typeof ns === 'number' ? ns / 1e6 : typeof ms === 'number' ? ms : undefined
}

/** `512 → 128 (96 cached)`: what was sent and what came back. */
function tokens(span: StoredSpan): string {
  const of = (name: string) => (typeof span[name] === 'number' ? (span[name] as number) : 0)
  const parts = [['cache_read_tokens', 'from cache'], ['cache_write_tokens', 'into cache'], ['reasoning_tokens', 'reasoning']] as const
  const said = parts.filter(([name]) => of(name)).map(([name, what]) => `${exactCount(of(name))} ${what}`)
  return `${exactCount(of('prompt_tokens'))} → ${exactCount(of('comp_tokens'))}${said.length ? ` (${said.join(', ')})` : ''}`
}
