import './health.css'
import type { ComponentChildren } from 'preact'
import type { Log, Part, PipelineHealth } from '../api/health'
import { bytes, count, duration, exactCount, NONE, plain } from '../core/format'
import { coverageOf, PARTS, SIGNS, verdictOf } from '../core/health'
import type { Route } from '../core/route'
import { useKeys, useShared, useTitle } from '../parts/app'
import { askForHealth, useHealth } from '../parts/health_feed'
import { Losses } from '../parts/losses'
import { Refused } from '../parts/refused'
import { ReporterList } from '../parts/reporters'
import { Curl, Failed, Note } from '../parts/states'
import type { Retention } from '../api/types'
import { scroller } from '../parts/scroller'

export function Health({ route }: { route: Route }) {
  const { about } = useShared()
  const heading = useTitle('Health', 'health')
  const path = `.${about?.paths.health ?? '/health'}`
  const { health, error } = useHealth(path)
  useKeys('page', (action) => action === 'refresh' && (askForHealth(), true))
  const verdict = verdictOf(error ? error.message : health)
  return (
    <div class="health">
      <h1 ref={heading} tabIndex={-1}>Health</h1>
      {error && <Failed error={error} retry={askForHealth} />}
      {!health && !error && <div class="outline">Loading…</div>}
      {health && (
        <div class={error ? 'stale' : ''}>
          <p class="health-verdict">
            <span class={`level-${verdict.level}`} aria-hidden="true">{SIGNS[verdict.level]}</span>{' '}
            <strong>{verdict.level === 'ok' ? 'Every part works.' : verdict.level === 'bad' ? 'Something is wrong.' : verdict.level === 'warning' ? 'Every part works, with warnings.' : 'Not known now.'}</strong>{' '}
            <span class="dim">version {plain(health.version)}, up for {duration(health.uptime_s * 1000)}, {count(health.span_count)} spans counted, {count(health.stored_spans)} stored</span>
          </p>
          {health.error && <Note kind="error" text={plain(health.error)} />}
          {health.warnings?.filter((text) => !health.parts.some((part) => part.detail.includes(text))).map((text) => <Note key={text} text={plain(text)} />)}
          <Parts health={health} />
          <Panel title="Is anything lost?"><Losses health={health} /></Panel>
          <div class="health-pair">
            <Panel title="How far back"><Coverage log={health.log} disk={health.disk} /></Panel>
            {about && <Panel title="What is deleted when"><Deleted retention={about.retention} /></Panel>}
          </div>
          <Curl path={path} />
        </div>
      )}
      <Panel title="Who sends spans"><ReporterList /></Panel>
      <Panel title="Refused spans"><Refused route={route} /></Panel>
    </div>
  )
}

function Panel({ title, children }: { title: string; children: ComponentChildren }) {
  return <section aria-label={title}><h2>{title}</h2>{children}</section>
}

function Parts({ health }: { health: PipelineHealth }) {
  const off = Object.entries(health.clock ?? {}).filter(([, ms]) => Math.abs(ms) >= 1000)
  return (
    <section aria-label="Parts">
      <h2>Parts</h2>
      <div class="scroll" ref={scroller}>
        <table class="health-parts">
          <thead><tr><th>part</th><th>state</th><th class="number">behind</th><th class="number">processes</th></tr></thead>
          <tbody>{health.parts.map((part) => <PartRow key={part.name} part={part} processes={health.services?.[SERVICE_OF[part.name] ?? part.name]?.processes} />)}</tbody>
        </table>
      </div>
      {off.map(([name, ms]) => (
        <p key={name} class="dim">The clock of the host of {plain(name)} is {duration(Math.abs(ms))} {ms > 0 ? 'ahead of' : 'behind'} the broker's, whose time counts.</p>
      ))}
    </section>
  )
}

/** Part -> the service whose processes it is. */
const SERVICE_OF: Readonly<Record<string, string>> = { store: 'api' }

function PartRow({ part, processes }: { part: Part; processes: number | undefined }) {
  const level = part.ok ? (part.detail ? 'warning' : 'ok') : 'bad'
  return (
    <tr>
      <td><strong>{plain(part.name)}</strong><br /><span class="dim">{PARTS[part.name] ?? ''}</span></td>
      <td class="name">
        <span class={`level-${level}`}><span aria-hidden="true">{SIGNS[level]}</span> {part.ok ? (part.detail ? 'warning' : 'ok') : 'unwell'}</span>
        {part.detail && <div>{plain(part.detail)}</div>}
      </td>
      <td class="number">{part.lag_s === null ? NONE : duration(part.lag_s * 1000)}</td>
      <td class="number">{count(processes)}</td>
    </tr>
  )
}

function Coverage({ log, disk }: { log: Log | undefined; disk: PipelineHealth['disk'] }) {
  const coverage = log && coverageOf(log)
  return (
    <>
      {!coverage ? <p>How far the log reaches back is not known now.</p>
        : coverage.isShort ? <Note text={coverage.text} /> : <p>{coverage.text}</p>}
      {!disk ? <p>How large the store is is not known now.</p> : (
        <p>
          The store takes {bytes(disk.store_bytes)}{disk.store_max_bytes === null ? '' : ` of at most ${bytes(disk.store_max_bytes)}`};{' '}
          {bytes(disk.free_bytes)} of its disk are free.
        </p>
      )}
      <p class="dim">
        The log is what every part reads: metrics, alerts and the store can be made anew from it, as far as it reaches back.
      </p>
    </>
  )
}

function Deleted({ retention }: { retention: Retention }) {
  const limits = [
    ...(retention.max_spans ? [`only the newest ${exactCount(retention.max_spans)} are shown`] : []),
    ...(retention.max_bytes ? [`the oldest go when they take over ${bytes(retention.max_bytes)}`] : []),
  ]
  const rows: [string, string, string][] = [
    ['Spans, traces, sessions', retention.shown_for, limits.join('; ')],
    ['Records of the log', retention.log_keeps, 'or earlier, when the log is full'],
    ['Metrics', retention.metrics_for, 'the finest steps are kept for a shorter time'],
    ['Refused spans', retention.rejected_for, 'their number is kept'],
    ['Firings of alerts', retention.alerts_for, ''],
    ['Spans that never end', retention.open_for, 'then they are shown as abandoned'],
  ]
  return (
    <div class="scroll" ref={scroller}>
      <table>
        <thead><tr><th>what</th><th>after</th><th>and</th></tr></thead>
        <tbody>{rows.map(([what, after, more]) => <tr key={what}><td>{what}</td><td>{after}</td><td class="dim">{more}</td></tr>)}</tbody>
      </table>
    </div>
  )
}
