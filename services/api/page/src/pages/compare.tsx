// What changed: two times, two values of a filter, or two traces side by side.

import './compare.css'
import { asked } from '../api/compare'
import { OWN } from '../core/compare'
import { METRIC_FILTERS, withOwn, within } from '../core/filter'
import { address, type Route } from '../core/route'
import { go, useTitle } from '../parts/app'
import { FilterBar } from '../parts/filterbar'
import { rangeIn } from '../parts/range'
import { Note } from '../parts/states'
import { Distributions, Explained, GroupsPanel, Numbers, Overlaid } from './compare_panels'
import { Sides } from './compare_sides'
import { TwoTraces } from './compare_traces'

export function Compare({ route }: { route: Route }) {
  const heading = useTitle('Compare', route.id)
  const title = <h1 ref={heading} tabIndex={-1}>Compare</h1>
  if (route.params.has('trace')) return <>{title}<TwoTraces route={route} /></>
  const { params } = route
  const range = rangeIn(route)
  if (typeof range === 'string') return <>{title}<Note kind="error" text={range} /></>
  const pairs = asked(params, OWN)
  const own = [...METRIC_FILTERS.own, ...OWN, ...params.names().filter((name) => name.startsWith('compare.'))]
  const change = (next: typeof params) => go(address('compare', '', next))
  return (
    <>
      {title}
      <Sides key={JSON.stringify([...params])} params={params} range={range} change={change} />
      <FilterBar params={params} filters={withOwn(METRIC_FILTERS, own)} range={within(range)} change={change} />
      <div class="compare">
        <Numbers pairs={pairs} />
        <Explained pairs={pairs} />
        <GroupsPanel pairs={pairs} params={params} change={change} />
        <Overlaid pairs={pairs} params={params} />
        <Distributions pairs={pairs} params={params} />
      </div>
    </>
  )
}
