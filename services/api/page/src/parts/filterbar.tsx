// The filters of a page: a chip for each, and a field that adds one.

import { useState } from 'preact/hooks'
import { chips, repeated, takesSeveral, unknown, without, words, type Chip, type FilterSet } from '../core/filter'
import { cut, plain } from '../core/format'
import type { Pair, Params } from '../core/params'
import { FilterField } from './filter_field'
import './filterbar.css'

/** Longest value that a chip shows, characters. */
const MOST_TEXT = 80

export type FilterBarProps = {
  params: Params
  filters: FilterSet
  /** Shows the page with other parameters. */
  change: (params: Params) => void
  /** The range of the page: `within(range)` of core/filter. The values that are offered are of this time. */
  range: readonly Pair[]
  /** The field's id; the key `/` goes to `filter`. A second bar of a page has another one. */
  id?: string
}

export function FilterBar(props: FilterBarProps) {
  const { params, filters, change, id = 'filter' } = props
  const [edited, edit] = useState<Chip | null>(null)
  const remove = (next: Params) => {
    edit(null)
    change(next)
    // The button that was pressed is gone.
    document.getElementById(id)?.focus()
  }
  const shown = chips(params, filters)
  return (
    <div class="bar filters" role="search" aria-label="Filters">
      {shown.map((chip, at) => {
        const { what, value } = words(chip)
        const isFurther = !chip.not && takesSeveral(filters, chip.key) && shown[at - 1]?.name === chip.name
        const said = `${plain(what)} ${cut(plain(value), MOST_TEXT)}`
        return (
          <span class="chip" key={`${chip.name}=${chip.value}`}>
            <button type="button" class="chip-text" title={`${plain(what)} ${plain(value)}; click to change it`} onClick={() => edit({ ...chip })}>
              {isFurther && 'or '}{said}
            </button>
            <button type="button" aria-label={`remove the filter ${said}`} onClick={() => remove(without(params, chip.name, chip.value))}>×</button>
          </span>
        )
      })}
      {repeated(params, filters).map((name) => (
        <span class="chip wrong" key={`2${name}`}>
          {plain(name)}: given twice, the first counts
          <button type="button" aria-label={`remove the others of ${plain(name)}`} onClick={() => remove(params.with({ [name]: params.get(name)! }))}>×</button>
        </span>
      ))}
      {unknown(params, filters).map((name) => (
        <span class="chip wrong" key={`?${name}`}>
          {plain(name)}: not understood
          <button type="button" aria-label={`remove ${plain(name)}`} onClick={() => remove(without(params, name))}>×</button>
        </span>
      ))}
      <FilterField {...props} id={id} edited={edited} done={() => edit(null)} />
      {shown.length > 1 && (
        <button type="button" onClick={() => remove(shown.reduce((left, chip) => without(left, chip.name), params))}>clear</button>
      )}
    </div>
  )
}
