"""The style of a report: light and dark, wide tables that scroll, nothing loaded."""

STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf7; --ink: #22201d; --soft: #6b665f;
  --edge: #ddd8cf; --measured: #1f6b4a; --predicted: #a35a12; --heat: #b3402c; --cool: #1f6b4a; }
@media (prefers-color-scheme: dark) { :root { --paper: #191816; --ink: #ece8e1; --soft: #a09a91;
  --edge: #3a3733; --measured: #6fcf9f; --predicted: #e8a35c; --heat: #e0745f; --cool: #6fcf9f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 64rem; padding: 1rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .4rem; }
p, dl { margin: .4rem 0; } .soft, figcaption { color: var(--soft); font-size: .9rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 1rem; }
dt { color: var(--soft); } dd { margin: 0; }
p { max-width: 46rem; } figure { margin: 1rem 0; }
svg { display: block; width: 100%; max-width: 36rem; height: auto; }
svg text { fill: var(--soft); font: 13px system-ui, sans-serif; }
svg .middle { text-anchor: middle; } svg .end { text-anchor: end; }
.grid { stroke: var(--edge); } .line { fill: none; stroke-width: 2; }
.line.measured { stroke: var(--measured); }
.line.predicted { stroke: var(--predicted); stroke-dasharray: 5 4; }
.dot.measured { fill: var(--measured); } .dot.beaten { fill-opacity: .35; }
.dot.predicted { fill: var(--paper); stroke: var(--predicted); stroke-width: 2; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
td, th { padding: .25rem .6rem; text-align: right;
  border-bottom: 1px solid var(--edge); overflow-wrap: normal; white-space: nowrap; }
th { font-weight: 600; } td.words, th.words { text-align: left; }
td.long { white-space: normal; min-width: 14rem; text-align: left; }
td.name { white-space: normal; min-width: 9rem; max-width: 13rem; text-align: left; }
td.heat { background: color-mix(in srgb, var(--heat) var(--part), transparent); }
td.planes { background: color-mix(in srgb, var(--cool) var(--part), transparent); }
.mark { font-size: .75rem; padding: 0 .35rem; border: 1px solid; border-radius: .6rem; }
.mark.measured { color: var(--measured); } .mark.predicted { color: var(--predicted); }
@media print { body { max-width: none; } }
"""
