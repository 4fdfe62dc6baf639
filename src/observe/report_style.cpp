#include "report_style.hpp"

namespace trainer::observe {

const char* const kReportStyle = R"css(
:root { color-scheme: light dark; --back: #fbfbfa; --card: #fff; --ink: #1c1e21; --soft: #5c6370; --rule: #e2e3e6; --lane: #f0f1f3;
  --F: #0072b2; --B: #009e73; --I: #e69f00; --W: #cc79a7; --sum: #d55e00; --opt: #8a6d1a; --data: #6b4c9a; --other: #9aa0a8;
  --wait: #56b4e9; --hatch-a: #eceef1; --hatch-b: #b6bcc6; --on-dark: #fff; --on-light: #1c1e21; --measured: #5c6370; --mark: #d00000; }
@media (prefers-color-scheme: dark) { :root { --back: #16181c; --card: #1e2126; --ink: #e6e8eb; --soft: #a3aab5; --rule: #343941;
  --lane: #272b32; --F: #3f9bd6; --B: #22b58c; --I: #efb43a; --W: #da94bb; --sum: #ec7a2d; --opt: #c4a545; --data: #a58bd0; --other: #767d88;
  --wait: #7cc7f2; --hatch-a: #2b3038; --hatch-b: #596270; --on-dark: #0c0d0f; --on-light: #0c0d0f; --measured: #a3aab5; --mark: #ff6b6b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 26px; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 0 0 8px; }
h3 { font-size: 14px; margin: 0 0 4px; font-weight: 600; }
p { margin: 4px 0 10px; }
.sub, .note { color: var(--soft); }
.note { font-size: 13.5px; }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 16px 18px; margin: 16px 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(132px, 1fr)); gap: 10px; margin: 16px 0; }
.tile { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 9px 13px; }
.tile b { display: block; font-size: 20px; font-weight: 600; line-height: 1.3; white-space: nowrap; }
.tile span { color: var(--soft); font-size: 13px; }
.notices { border-left: 4px solid var(--sum); }
.notices ul { margin: 0; padding-left: 20px; }
.grid2 { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 16px 28px; }
svg { display: block; }
svg text { fill: var(--soft); font-size: 12px; font-family: inherit; }
.chart { width: 100%; height: auto; }
.grid { stroke: var(--rule); stroke-width: 1; } .axis, .tick { stroke: var(--soft); stroke-width: 1; }
.line { fill: none; stroke: var(--F); stroke-width: 1.8; stroke-linejoin: round; }
.line.faint { stroke-width: 1; opacity: .38; } .line.second { stroke: var(--sum); }
.dot { fill: var(--F); } .dot.second { fill: var(--sum); } .tip { fill: transparent; } .tip:hover { fill: var(--F); fill-opacity: .5; }
svg text.name { fill: var(--F); font-weight: 600; } svg text.name.second { fill: var(--sum); }
.scroll { overflow-x: auto; }
.pipeline { width: 100%; min-width: 860px; height: auto; }
.lane { fill: var(--lane); }
rect.F { fill: var(--F); } rect.B { fill: var(--B); } rect.I { fill: var(--I); } rect.W { fill: var(--W); }
.pipeline rect.F, .pipeline rect.B, .pipeline rect.I, .pipeline rect.W { stroke: var(--card); stroke-width: .7; }
rect.wait { fill: var(--wait); } rect.sum { fill: var(--sum); } rect.opt { fill: var(--opt); } rect.data { fill: var(--data); }
rect.other { fill: var(--other); } rect.bubble { fill: var(--hatch-b); } rect.mark { fill: var(--mark); } rect.measured { fill: var(--measured); }
rect.waiting { fill: url(#hatch); } .hatch-back { fill: var(--hatch-a); } .hatch-line { fill: var(--hatch-b); }
svg text.on-F, svg text.on-B { fill: var(--on-dark); font-size: 11px; } svg text.on-I, svg text.on-W { fill: var(--on-light); font-size: 11px; }
rect.m0 { fill: var(--F); } rect.m1 { fill: var(--wait); } rect.m2 { fill: var(--B); } rect.m3 { fill: var(--I); }
rect.m4 { fill: var(--sum); } rect.m5 { fill: var(--W); } rect.m6 { fill: var(--other); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13.5px; color: var(--soft); }
.legend span { display: inline-flex; align-items: center; gap: 6px; } .key { width: 12px; height: 12px; border-radius: 2px; }
.row { display: grid; grid-template-columns: 164px 1fr 84px; align-items: center; gap: 10px; margin: 4px 0; font-size: 13.5px; }
.wide-value .row { grid-template-columns: 164px 1fr 150px; }
.bar { width: 100%; height: 18px; background: var(--lane); } .value { text-align: right; white-space: nowrap; } .who { white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 4px 12px; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th { color: var(--soft); font-weight: 500; } th:first-child, td:first-child { text-align: left; padding-left: 0; }
.words { text-align: left; } .bar-cell { min-width: 180px; width: 30%; } .promises { width: 100%; }
details { margin-top: 10px; } summary { cursor: pointer; color: var(--soft); }
pre { margin: 8px 0 0; overflow-x: auto; font: 12.5px/1.45 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
footer { color: var(--soft); font-size: 13px; }
@media (max-width: 560px) { main { padding: 16px 12px 40px; } section { padding: 12px; } .row { grid-template-columns: 1fr 1fr; gap: 0 10px; }
  .wide-value .row { grid-template-columns: 1fr 1fr; } .row .bar { grid-column: 1 / 3; grid-row: 2; } .row .value { grid-column: 2; grid-row: 1; } }
@media print { section { break-inside: avoid; } }
)css";

}  // namespace trainer::observe
