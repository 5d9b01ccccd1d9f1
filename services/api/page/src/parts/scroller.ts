// What is wider than its box can be scrolled by keyboard: the box gets the focus, but only while there is something to scroll.

function mark(box: HTMLElement): void {
  if (box.scrollWidth > box.clientWidth) box.tabIndex = 0
  else box.removeAttribute('tabindex')
}

const watcher = new ResizeObserver((entries) => {
  for (const { target } of entries) {
    const box = target.closest('.scroll')
    if (box instanceof HTMLElement) mark(box)
  }
})

/** The `ref` of an element of the class `scroll`. */
export function scroller(box: HTMLElement | null): void {
  if (!box) return
  watcher.observe(box)
  if (box.firstElementChild) watcher.observe(box.firstElementChild)
}
