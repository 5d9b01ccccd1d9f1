// The numbers at the top, each against the range of the same length before it, each a link to its own page.

import type { ComponentChildren } from 'preact'
import type { Everything, Leaf } from '../api/metrics'
import { amount, count, exactAmount, exactCount, quantileError, share, type Unit } from '../core/format'
import { address, type Route } from '../core/route'
import { told, type Better } from '../core/shape'
import { between } from '../core/time'
import { useShared } from '../parts/app'
import { passed } from '../parts/numbers_bar'

export function Cards({ data, route }: { data: Everything; route: Route }) {
  const { zone } = useShared()
  const { cost, latency, errors, quality, tokens, previous, change } = data
  const then = previous ? between(Date.parse(previous.from), Date.parse(previous.to), Date.parse(data.to), zone) : ''
  const before = (value: number | null | undefined, unit: Unit) => (previous ? `before, ${then}: ${exactAmount(value, unit)}` : '')
  const off = data.quantile_error ? ` ${quantileError(data.quantile_error)}` : ''
  const card = { route }
  return (
    <>
    <ul class="cards" aria-label="The most important numbers">
      <Card {...card} name="Cost" metric="total_cost" value={amount(cost.total_usd, 'usd')} exact={exactAmount(cost.total_usd, 'usd')}
        leaf={change?.cost.total_usd} unit="usd" better="lower" before={before(previous?.cost.total_usd, 'usd')}>
        {cost.per_call_usd !== null && <>{amount(cost.per_call_usd, 'usd')} a call</>}
        {cost.unpriced_span_count > 0 && <span class="card-warning" title="The cost of these spans is unknown, and the sum leaves them out."> + {count(cost.unpriced_span_count)} unpriced</span>}
        {cost.partly_priced_span_count > 0 && <span class="card-warning" title="A part of the cost of these spans is unknown."> at least: {count(cost.partly_priced_span_count)} partly priced</span>}
      </Card>
      <Card {...card} name="Latency p95" metric="latency_p95" value={amount(latency.p95_ms, 'milliseconds')} exact={exactAmount(latency.p95_ms, 'milliseconds') + off}
        leaf={change?.latency.p95_ms} unit="milliseconds" better="lower" before={before(previous?.latency.p95_ms, 'milliseconds')}>
        first token p95 {amount(latency.ttft_p95_ms, 'milliseconds')}
      </Card>
      <Card {...card} name="Errors" metric="error_rate" value={amount(errors.rate, 'share')} exact={`${exactCount(errors.count)} of ${exactCount(data.span_count)} calls`}
        leaf={change?.errors.rate} unit="share" better="lower" before={before(previous?.errors.rate, 'share')}>
        {count(errors.count)} failed, of these {count(errors.timeout_count)} by timeout
      </Card>
      <Card {...card} name="Quality" metric="quality_score" value={amount(quality.score_avg, 'score')} exact={exactAmount(quality.score_avg, 'score')}
        leaf={change?.quality.score_avg} unit="score" better="higher" before={before(previous?.quality.score_avg, 'score')}>
        {count(quality.scored_span_count)} scored, p10 {amount(quality.score_p10, 'score')}
      </Card>
      <Card {...card} name="Calls" metric="span_count" value={count(data.span_count)} exact={exactCount(data.span_count)}
        leaf={change?.span_count} unit="count" better="neither" before={before(previous?.span_count, 'count')}>
        <a href={address('metric', 'total_tokens', passed(route))} title={`${exactCount(tokens.total)} tokens`}>{tokens.total === null ? 'no data of' : count(tokens.total)} tokens</a>
        {!!tokens.prompt_total && <>, {share((tokens.cache_read_total ?? 0) / tokens.prompt_total)} of the prompt cached</>}
      </Card>
    </ul>
    {then && <p class="dim cards-before">Changes are against the time before, of the same length: {then}{previous!.span_count === 0 && ', without any call'}.</p>}
    </>
  )
}

function Card({ name, metric, value, exact, leaf, unit, better, before, route, children }: {
  name: string; metric: string; value: string; exact: string; leaf: Leaf | undefined; unit: Unit; better: Better; before: string
  route: Route; children: ComponentChildren
}) {
  const { text, mood } = told(leaf, unit, better)
  return (
    <li class="card" data-metric={metric}>
      <a class="card-name" href={address('metric', metric, passed(route))}>{name}</a>
      <span class="card-value" title={exact}>{value}</span>
      <span class={`card-change ${mood}`} title={before}>{text}</span>
      <span class="card-more dim">{children}</span>
    </li>
  )
}
