// The filters above numbers, and what the links of those pages take along.

import { FilterBar } from './filterbar'
import { keyOf, METRIC_FILTERS, TRACE_FILTERS, withOwn, within } from '../core/filter'
import { plain } from '../core/format'
import { Params } from '../core/params'
import { address, type Route } from '../core/route'
import { go } from './app'
import { rangeIn, rangeParams } from './range'
import { Note } from './states'

/** Parameters of the pages of numbers themselves. */
const OWN = ['groupby', 'measure', 'order', 'lines', 'previous', 'statistic']

/** Filters of the address that only the list of traces has. They are kept, so that the way back shows the same list. */
function ofTracesOnly(params: Params): string[] {
  return params.names().filter((name) => keyOf(TRACE_FILTERS, name) !== null && keyOf(METRIC_FILTERS, name) === null)
}

export function NumbersBar({ route }: { route: Route }) {
  const range = rangeIn(route)
  const idle = ofTracesOnly(route.params)
  return (
    <>
      <FilterBar params={route.params} filters={withOwn(METRIC_FILTERS, [...OWN, ...idle])} range={typeof range === 'string' ? [] : within(range)}
        change={(params) => route.page !== 'missing' && go(address(route.page, route.id, params))} />
      {idle.length > 0 && <Note text={`${idle.map((name) => plain(name)).join(', ')}: filters the list of traces only, not these numbers`} />}
    </>
  )
}

/** Range and filters, which every page understands. */
export function carried(route: Route): Params {
  const filters = [...route.params].filter(([name]) => keyOf(TRACE_FILTERS, name) !== null)
  return new Params([...Object.entries(rangeParams(route)), ...filters])
}

/** Range, filters and the dimension, for another page of numbers. */
export function passed(route: Route): Params {
  const dimension = route.params.get('groupby')
  return dimension === undefined ? carried(route) : carried(route).with({ groupby: dimension })
}
