"""What a page is asked about its panels: which controls have no name, which texts are hard to read."""

# Controls and pictures that a screen reader can't call by a name. A slider's handle is left out: ipywidgets
# gives it none, and the number box before it does the same.
UNNAMED = """() => [...document.querySelectorAll(
    '.sloth-panel :is(button, input, select, textarea, [role=button], [role=img], [role=progressbar])'
)].filter(at => !(at.labels?.[0]?.innerText.trim() || at.ariaLabel || at.innerText?.trim() || at.title))
  .map(at => at.outerHTML.slice(0, 120))"""

# Texts with less contrast to what is painted behind them than WCAG's 4.5 : 1 (bold: 3 : 1).
WEAK = """() => {
    const parse = colour => {
        const [r, g, b, a = 1] = colour.match(/[-\\d.]+/g).map(Number);
        return colour.startsWith('color(') ? [255 * r, 255 * g, 255 * b, a] : [r, g, b, a];
    };
    const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
    const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
        .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = at => {
        const layers = [];
        for (; at; at = at.parentElement) layers.push(parse(getComputedStyle(at).backgroundColor));
        return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255, 1]);
    };
    const weak = [];
    for (const at of document.querySelectorAll('.sloth-panel *, .sloth-card *')) {
        const own = [...at.childNodes].some(node => node.nodeType === 3 && node.data.trim());
        if (!own || !at.checkVisibility() || at.closest('button, option, style, title')) continue;
        const style = getComputedStyle(at), below = ground(at);
        const ink = over(parse(at.closest('svg') ? style.fill : style.color), below);
        const [a, b] = [light(ink), light(below)];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        const enough = Number(style.fontWeight) >= 600 ? 3 : 4.5;
        if (ratio < enough) weak.push([String(at.className), at.textContent.slice(0, 40), ratio.toFixed(2)]);
    }
    return weak;
}"""
