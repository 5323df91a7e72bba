"""Whether texts of a page stand out from what is behind them."""

from __future__ import annotations

from typing import Any

# [text, contrast to what is behind it, size, boldness] of all texts that are seen: WCAG 2.2, "contrast ratio"
CONTRASTS = """() => {
  const context = Object.assign(document.createElement('canvas'), {width: 1, height: 1}).getContext('2d',
    {willReadFrequently: true});
  const rgba = text => { context.clearRect(0, 0, 1, 1); context.fillStyle = text; context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data]; };
  const over = (a, b) => [0, 1, 2].map(i => a[i] * a[3] / 255 + b[i] * (1 - a[3] / 255));
  const light = c => c.map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = e => e === null ? [255, 255, 255]
    : over(rgba(getComputedStyle(e).backgroundColor), behind(e.parentElement));
  const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement, style = getComputedStyle(element);
    const text = walker.currentNode.textContent.trim();
    if (!text || !element.checkVisibility() || element.closest('script, style')) continue;
    const back = behind(element), front = over(rgba(style.color), back);
    const [low, high] = [light(front), light(back)].sort((a, b) => a - b);
    found.push([text, (high + 0.05) / (low + 0.05), parseFloat(style.fontSize), Number(style.fontWeight)]);
  }
  return found;
}"""


def hard_to_read(page: Any) -> list[Any]:
    """The texts whose contrast is below level AA of WCAG 2.2: 4.5, for large ones 3."""
    found = page.evaluate(CONTRASTS)
    return [one for one in found if one[1] < (3 if one[2] >= 24 or (one[2] >= 18.66 and one[3] >= 700) else 4.5)]
