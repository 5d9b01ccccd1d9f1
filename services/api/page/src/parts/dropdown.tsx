// A button with something below it that closes by Escape and by a click elsewhere.

import type { ComponentChildren } from 'preact'
import { useEffect, useRef, useState } from 'preact/hooks'
import './dropdown.css'

/** *children* are made only while it is open. */
export function Dropdown({ label, children }: { label: string; children: () => ComponentChildren }) {
  const [isOpen, setOpen] = useState(false)
  const root = useRef<HTMLDetailsElement>(null)
  useEffect(() => {
    if (!isOpen) return
    const elsewhere = (event: Event) => {
      if (!root.current?.contains(event.target as Node)) setOpen(false)
    }
    addEventListener('pointerdown', elsewhere)
    addEventListener('focusin', elsewhere)
    return () => {
      removeEventListener('pointerdown', elsewhere)
      removeEventListener('focusin', elsewhere)
    }
  }, [isOpen])
  return (
    <details class="dropdown" ref={root} open={isOpen} onToggle={(event) => setOpen(event.currentTarget.open)}
      onKeyDown={(event) => {
        if (event.key !== 'Escape' || !isOpen) return
        event.stopPropagation()
        setOpen(false)
        root.current?.querySelector('summary')?.focus()
      }}>
      <summary>{label}</summary>
      {isOpen && <div>{children()}</div>}
    </details>
  )
}
