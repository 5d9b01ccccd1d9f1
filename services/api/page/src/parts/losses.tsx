// What was lost, left out or counted elsewhere, each with what that means.

import type { PipelineHealth } from '../api/health'
import { ago } from '../core/time'
import { count, duration, exactCount, money, NONE, plain } from '../core/format'
import { gapText } from '../core/health'
import { scroller } from './scroller'

type Fact = { name: string; value: number | undefined; isWrong: boolean; meaning: string }

function factsOf(health: PipelineHealth): Fact[] {
  const { calls, rejected } = health
  const conflicts = calls ? `another usage or cost than the first telling, ${money(calls.conflicting_cost_usd)} in all: no sum has it` : ''
  return [
    { name: 'Gaps in the log', value: health.lost?.length ?? 0, isWrong: !!health.lost?.length,
      meaning: 'messages that the log discarded before a part had read them' },
    { name: 'Damaged files', value: health.damaged?.length ?? 0, isWrong: !!health.damaged?.length, meaning: 'files of the store that could not be read' },
    { name: 'Unreadable data', value: health.set_aside?.total ?? 0, isWrong: !!health.set_aside, meaning: 'entries of streams and buckets that could not be decoded' },
    { name: 'Refused spans', value: rejected?.spans, isWrong: !!rejected?.spans, meaning: 'listed below with the reason; they are stored nowhere else' },
    { name: 'Refused, not counted', value: rejected?.lost, isWrong: !!rejected?.lost, meaning: 'were discarded before they were counted' },
    { name: 'Waiting to be stored', value: health.queue_depth, isWrong: false, meaning: health.store_behind_s ? `the oldest for ${duration(health.store_behind_s * 1000)}` : 'messages of the log' },
    { name: 'Repeated spans', value: calls?.repeated_spans, isWrong: false, meaning: 'told a call again and were counted once' },
    { name: 'Conflicting spans', value: calls?.conflicting_spans, isWrong: !!calls?.conflicting_spans, meaning: conflicts },
    { name: 'Late spans', value: health.late_spans, isWrong: false, meaning: 'older than any window of the metrics when they arrived: stored, and in totals only' },
    { name: 'Spans from the future', value: health.clamped_spans, isWrong: false, meaning: 'end over five minutes after they arrived: metrics count them at their arrival' },
  ]
}

export function Losses({ health }: { health: PipelineHealth }) {
  const facts = factsOf(health).filter((fact) => fact.name !== 'Refused, not counted' || fact.value)
  return (
    <>
      <div class="scroll" ref={scroller}>
        <table class="health-losses">
          <thead><tr><th>what</th><th class="number">number</th></tr></thead>
          <tbody>
            {facts.map(({ name, value, isWrong, meaning }) => (
              <tr key={name} class={isWrong ? 'wrong' : ''}>
                <td>{isWrong && <span class="level-warning" aria-hidden="true">▲ </span>}<strong>{name}</strong>{' '}
                  <span class="dim">{value === undefined ? 'not known now' : meaning}</span></td>
                <td class={isWrong ? 'number health-bad' : 'number'} title={exactCount(value)}>{value === undefined ? NONE : count(value)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
      {health.lost?.map((gap, at) => <p key={at}>Lost: {plain(gapText(gap))}.</p>)}
      {health.damaged?.map((name) => <p key={name}>Damaged: {plain(name)}.</p>)}
      {health.set_aside && (
        <details>
          <summary>Unreadable data: the newest {exactCount(health.set_aside.newest.length)}</summary>
          <ul>
            {health.set_aside.newest.map((each, at) => (
              <li key={at}>{plain(each.place)}, {plain(each.which)}: {plain(each.reason)} <span class="dim">({exactCount(each.count)} times, last {ago(Date.parse(each.last_at), Date.now())})</span></li>
            ))}
          </ul>
        </details>
      )}
      {health.calls && health.calls.reach_s !== null && (
        <p class="dim">
          A call that is told again is recognised for {duration(health.calls.reach_s * 1000)}: {count(health.calls.remembered)} calls are remembered.
        </p>
      )}
    </>
  )
}
