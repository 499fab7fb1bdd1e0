# ruff: noqa: E501  (rules of CSS, one on a line)
"""The style of the pages, their script, and the shapes that timelines use. Constants: a policy names their hashes."""

from backupd.page.html import Markup


def _on_few_lines(text: str) -> str:
    """Leave out what a browser does not need: every page carries this."""
    return "".join(line.strip() for line in text.splitlines())


STYLE = _on_few_lines("""
:root{color-scheme:light dark;
--page:#fbfbfa;--card:#fff;--text:#1c2024;--quiet:#5b636b;--rule:#dddfe2;--soft:#f0f1f2;--link:#0a58a8;
--good:#1a7038;--warn:#875200;--bad:#b3261e;--mark:#2462ab;--band:#a9c8ec;--goodpage:#e9f5ec;--warnpage:#fdf3df;--badpage:#fdecea}
@media(prefers-color-scheme:dark){:root{
--page:#121416;--card:#1a1d20;--text:#e7e9eb;--quiet:#a2abb3;--rule:#343a40;--soft:#23272b;--link:#85bdff;
--good:#5fcf86;--warn:#e8b75a;--bad:#ff8f84;--mark:#85b8f5;--band:#2f5686;--goodpage:#16271c;--warnpage:#2b2315;--badpage:#321b19}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0 auto;max-width:64rem;padding:1rem 1rem 3rem;background:var(--page);color:var(--text);
font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
a{color:var(--link);text-underline-offset:.15em}
:focus-visible{outline:3px solid var(--link);outline-offset:2px;border-radius:2px}
main:focus{outline:0}
h1{font-size:clamp(1.4rem,1rem + 2.2vw,2.1rem);line-height:1.22;font-weight:620;letter-spacing:-.015em;margin:0;text-wrap:pretty;overflow-wrap:anywhere}
h2{font-size:1.3rem;margin:2.6rem 0 .6rem;line-height:1.3;overflow-wrap:anywhere}
h3{font-size:1.02rem;margin:1.8rem 0 .4rem}
p{margin:.5rem 0;max-width:46rem}
.skip{position:absolute;left:-99rem}
.skip:focus{left:1rem;top:.5rem;background:var(--card);padding:.4rem .8rem}
.quiet,figcaption,.axis,footer{color:var(--quiet)}
.small{font-size:.875rem}
footer{margin-top:3rem;border-top:1px solid var(--rule);padding-top:.6rem;font-size:.875rem}
.trail ol{list-style:none;display:flex;flex-wrap:wrap;gap:.2rem .5rem;margin:0 0 .8rem;padding:0;font-size:.9rem;overflow-wrap:anywhere}
.trail li+li::before{content:"/" / "";color:var(--quiet);margin-right:.5rem}
.banner{border-left:.45rem solid;border-radius:.35rem;padding:1.15rem 1.3rem;margin-bottom:1.4rem}
.banner>*{color:var(--text)}
.banner p{font-size:1.06rem;margin:.55rem 0 0}
.banner.good{border-color:var(--good);background:var(--goodpage)}
.banner.warn{border-color:var(--warn);background:var(--warnpage)}
.banner.bad{border-color:var(--bad);background:var(--badpage)}
.g,.w,.b{white-space:nowrap}
.g::before,.w::before,.b::before{display:inline-block;width:1.2em}
.g{color:var(--good)}.g::before{content:"●" / ""}
.w{color:var(--warn)}.w::before{content:"▲" / ""}
.b{color:var(--bad);font-weight:600}.b::before{content:"■" / ""}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--quiet);font-size:.875rem;padding-bottom:.3rem}
th,td{text-align:left;padding:.42rem .9rem .42rem 0;border-bottom:1px solid var(--rule);vertical-align:top}
thead th{font-size:.84rem;font-weight:600;color:var(--quiet);white-space:nowrap;vertical-align:bottom}
thead a{color:inherit}
th[aria-sort] a{font-weight:700;color:var(--text)}
th[aria-sort] a::after{content:" ↓" / ""}
th[aria-sort=ascending] a::after{content:" ↑" / ""}
tbody th{font-weight:500;overflow-wrap:anywhere;min-width:9rem}
.s th,.s time{white-space:nowrap}.s{font-size:.92rem}.s td:last-child{min-width:13rem}
.n{text-align:right;white-space:nowrap}
.r td:nth-child(4),.r th:nth-child(4),.r td:nth-child(5),.r th:nth-child(5){text-align:right}
.r td:nth-child(6),.r th:nth-child(6){padding-left:1.2rem}
.r td{white-space:nowrap}
.alarms{list-style:none;padding:0;margin:0 0 1.6rem}
.alarms li{border-left:3px solid var(--rule);padding:.1rem 0 .1rem .9rem;margin:.9rem 0;overflow-wrap:anywhere}
.alarms p{margin:.15rem 0}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,max(9rem,22%)),1fr));gap:.9rem 1.4rem;margin:.8rem 0 1.2rem}
.facts dt{font-size:.84rem;color:var(--quiet)}
.facts dd{margin:0;overflow-wrap:anywhere}
.rows{grid-template-columns:1fr;gap:0}
.rows div{display:grid;grid-template-columns:10rem 1fr;gap:.8rem;padding:.36rem 0;border-bottom:1px solid var(--rule)}
.spans{border:0;padding:0;margin:1rem 0 0;min-width:0}
.spans legend{font-weight:600;padding:0;margin-bottom:.5rem}
.spans>input{position:absolute;opacity:0}
.spans>label{display:inline-block;padding:.25rem .9rem;border:1px solid var(--rule);background:var(--card);margin-left:-1px;cursor:pointer;font-size:.92rem}
.spans>label:first-of-type{border-radius:.4rem 0 0 .4rem}
.spans>label:last-of-type{border-radius:0 .4rem .4rem 0}
.spans>input:checked+label{background:var(--text);color:var(--page);border-color:var(--text)}
.spans>input:focus-visible+label{outline:3px solid var(--link);outline-offset:2px;position:relative}
.spans>div{display:none;margin-top:.8rem}
.spans>input:nth-of-type(1):checked~div:nth-of-type(1),.spans>input:nth-of-type(2):checked~div:nth-of-type(2),
.spans>input:nth-of-type(3):checked~div:nth-of-type(3){display:block}
svg{display:block;width:100%;overflow:visible}
svg text{font:.75rem system-ui,-apple-system,"Segoe UI",Roboto,Arial,sans-serif;fill:var(--quiet)}
svg .lane{fill:var(--text)}
.defs{position:absolute;width:0;height:0}
.rail{stroke:var(--rule)}.tick{stroke:var(--rule);stroke-dasharray:2 3}
.mark{color:var(--mark)}.ok{color:var(--good)}.no{color:var(--bad)}.hold{color:var(--warn)}.gone{color:var(--quiet)}
rect.mark,rect.ok,rect.hold{fill:currentColor}rect.band{fill:var(--band)}rect.gap{fill:url(#hatch)}
.runs path{stroke:var(--quiet);stroke-width:1.2;fill:none;vector-effect:non-scaling-stroke}
.runs path.made{stroke:var(--mark);stroke-width:1.6}
.key{display:flex;flex-wrap:wrap;gap:.15rem 1.1rem;list-style:none;padding:0;margin:.5rem 0 0;font-size:.84rem;color:var(--quiet)}
.key svg{display:inline-block;width:14px;height:14px;vertical-align:-2px;margin-right:.35rem}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));gap:1.4rem 2rem;margin:1rem 0}
figure{margin:0}
figcaption{font-size:.875rem}figcaption b{color:var(--text);font-size:1rem;font-weight:600;display:block}
.chart{height:72px;margin-top:.4rem;border-bottom:1px solid var(--rule)}
.chart path{vector-effect:non-scaling-stroke;fill:none;stroke:var(--mark);stroke-width:1.8}
.chart .area{fill:var(--band);opacity:.45;stroke:none}
.chart .bars{stroke-width:2.4}
.axis{display:flex;justify-content:space-between;font-size:.78rem}
.strip{width:9rem;height:20px}.strip .runs path{stroke-width:1.1}
.copy{display:flex;gap:.6rem;align-items:flex-start;margin:.3rem 0 .9rem}
pre{margin:0;flex:1;min-width:0;background:var(--soft);border-radius:.35rem;padding:.55rem .8rem;white-space:pre-wrap;overflow-wrap:anywhere}
code{font:.92rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;user-select:all}
button{font:inherit;font-size:.9rem;padding:.5rem .9rem;border:1px solid var(--quiet);border-radius:.35rem;background:var(--card);color:var(--text);cursor:pointer}
section{scroll-margin-top:1rem}
@media(max-width:40rem){
.o td:nth-child(n+4),.o th:nth-child(n+4){display:none}
.rows div{grid-template-columns:1fr;gap:0}
th,td{padding-right:.6rem}.banner{padding:.9rem 1rem}tbody th{min-width:7rem}.strip{width:5rem}}
@media print{.spans>div{display:block!important}.spans>input,.spans>label,.skip,button{display:none}body{max-width:none}}
""")

SCRIPT = _on_few_lines("""
if(navigator.clipboard)document.querySelectorAll(".copy").forEach(function(line){
var code=line.querySelector("code"),button=document.createElement("button");
button.type="button";button.textContent="Copy";button.setAttribute("aria-label","Copy: "+code.textContent);
button.onclick=function(){navigator.clipboard.writeText(code.textContent).then(function(){
button.textContent="Copied";setTimeout(function(){button.textContent="Copy"},2000)})};
line.append(button)});
""")

SYMBOLS = Markup(
    _on_few_lines("""
<svg class="defs" aria-hidden="true"><defs>
<g id="kept"><circle r="4.2" fill="currentColor"/></g>
<g id="unkept"><circle r="3.6" fill="var(--page)" stroke="currentColor" stroke-width="1.6"/></g>
<g id="tagged"><path d="M-4-4h8v8h-8z" fill="currentColor"/></g>
<g id="safety"><path d="M0-5.2 5.2 0 0 5.2-5.2 0z" fill="currentColor"/></g>
<g id="removed"><path d="M-3.4 0h6.8" stroke="currentColor" stroke-width="2.4"/></g>
<g id="passed"><path d="M0-5 5 4H-5z" fill="currentColor"/></g>
<g id="intact"><path d="M0-4.4 4.4 3.6H-4.4z" fill="var(--page)" stroke="currentColor" stroke-width="1.6"/></g>
<g id="failed"><path d="M-4-4 4 4M4-4-4 4" stroke="currentColor" stroke-width="2.4"/></g>
<pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
<path d="M0 0v5" stroke="var(--bad)" stroke-width="2.6"/></pattern>
</defs></svg>
""")
)
