// A small line of values, for a row of a table. It has no axes, so the value itself must stand beside it.

import type { Shown } from '../core/series'
import { segments } from '../core/series'

const [WIDTH, HEIGHT] = [96, 24]

/** Points in equal steps from left to right, from 0 or the lowest value up to *most*; null is a gap. *name* says what it shows. */
export function Sparkline({ points, name, most, colour = 'var(--fg)' }: { points: readonly Shown[]; name: string; most?: number; colour?: string }) {
  const values = points.map((point) => point.value)
  const known = values.filter((value) => value !== null)
  if (!known.length) return <span class="dim">no data</span>
  const bottom = Math.min(0, ...known)
  const top = Math.max(most ?? 0, ...known)
  const x = (at: number) => (values.length < 2 ? WIDTH / 2 : 2 + (at / (values.length - 1)) * (WIDTH - 4))
  const y = (at: number) => HEIGHT - 3 - ((values[at]! - bottom) / (top - bottom || 1)) * (HEIGHT - 6)
  const { pieces, alone } = segments(values, points.map((point) => point.partial))
  const path = (dashed: boolean) => pieces
    .filter((piece) => piece.dashed === dashed)
    .map(({ from, to }) => `M${x(from).toFixed(1)} ${y(from).toFixed(1)}L${x(to).toFixed(1)} ${y(to).toFixed(1)}`)
    .join('')
  return (
    <svg class="sparkline" role="img" aria-label={name} width={WIDTH} height={HEIGHT} viewBox={`0 0 ${WIDTH} ${HEIGHT}`} fill="none" stroke={colour} stroke-width="1.5">
      <path d={path(false)} />
      <path d={path(true)} stroke-dasharray="2 2" />
      {alone.map((at) => <circle key={at} cx={x(at)} cy={y(at)} r="1.5" fill={colour} />)}
    </svg>
  )
}
