"""Strings that try to come to life on a page, and a run that has them wherever a text can come from outside."""

from __future__ import annotations

from collections.abc import Sequence

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from synthetic_rows import candidate, control, gate, group, member, ood_rows, sources

from husai_lib.evidence.runs import Run
from husai_lib.evidence.steps import open_step
from husai_lib.files import REPOSITORY, write_json
from husai_lib.params.cycle import load_cycle
from husai_lib.report import tables

TEXTS = [
    "<script>document.title='run'</script>",
    "<img src=//evil.example/x.png onerror=alert(1)>",
    "</td></tr></table></main><h1>Released</h1>",
    "{{< env HOME >}} and ${HOME}",
    "[here](javascript:alert(2)) ![](https://evil.example/y.png)",
    "$\\text{<b>bold</b>}$ \\(x\\) \\alpha",
    "`code` | a | b \\| c ~~d~~ **e** _f_",
    "<svg/onload=alert(3)><style>*{display:none}</style>",
    "&lt;b&gt; &amp; \"double\" 'single' &#x3c;i>",
    "--> <!-- @fig-x --- ... ]]> # % ? \u202e\u00e9\U0001f600",
    "<iframe srcdoc='<script>alert(4)</script>'></iframe>",
    "<object data=javascript:alert(5)></object><embed src=//evil.example>",
    "<base href=//evil.example/><meta http-equiv=refresh content='0;url=//evil.example'>",
    "<form action=//evil.example><button formaction=javascript:alert(6)>go</button></form>",
    "<a href='java\tscript:alert(7)'>a</a> <a href=&#106;avascript:alert(8)>b</a>",
    "<a href='\x01javascript:alert(9)'>a</a> <a href=vbscript:x>b</a> <a href=data:text/html,x>c</a>",
    "<a href=//evil.example>a</a> <a href='\\\\evil.example'>b</a> <a href='https:/evil.example'>c</a>",
    "<details open ontoggle=alert(10)><summary>x</summary></details>",
    "<math><mtext><table><mglyph><style><img src=x onerror=alert(11)></style></mglyph></table></mtext></math>",
    "<math href='javascript:alert(12)'>x</math><svg><a xlink:href='javascript:alert(13)'>y</a></svg>",
    "<noscript><p title='</noscript><img src=x onerror=alert(14)>'>",
    "<!--><script>alert(15)</script>--> <![CDATA[<script>alert(16)</script>]]>",
    "<template><script>alert(17)</script></template><title></title><script>alert(18)</script>",
    "<p style='background:url(//evil.example/z.png);position:fixed'>over everything</p>",
    "<link rel=stylesheet href=//evil.example/a.css><style>@import '//evil.example/b.css';</style>",
    "<video src=//evil.example/v poster=//evil.example/p onloadstart=alert(19)><audio src=x onerror=alert(20)>",
    "<img srcset='//evil.example/s.png 2x' src=data:image/svg+xml;base64,PHN2Zy8+>",
    "<input autofocus onfocus=alert(21)><select onchange=alert(22)><textarea></textarea>",
    "<img alt='<table onmouseover=alert(23) x'><span id=x tabindex=0 onblur=alert(24)>y</span>",
    "\"onmouseover=\"alert(25)\" x=\" 'onmouseover='alert(26)' x='",
    '![x](javascript:alert(27) "t") [y]: javascript:alert(28) <javascript:alert(29)>',
    "[z](<//evil.example> 'title' onclick=alert(30)) <https://evil.example> https://evil.example/bare",
    "{{< include /etc/passwd >}} {{< video //evil.example/v >}} {{{< kbd x >}}}",
    "::: {.callout onclick=alert(31)} ::: [span]{onclick=alert(32) .x}",
    "```{=html} <script>alert(33)</script> ``` `<b>`{=html}",
    "`{r} system('true')` ```{python} open('x','w') ``` <% x %> {% raw %} {{ 7*7 }}",
    "--- title: x --- \\input{/etc/passwd} \\href{javascript:alert(34)}{x} $\\href{javascript:alert(35)}{x}$",
    "data-qmd='{{< env HOME >}}' <span data-qmd-base64='e3s8IGVudiBIT01FID59fQ=='>s</span>",
    "</textarea></title></style></script></xmp></noscript></iframe><plaintext>",
    "%3Cscript%3Ealert(36)%3C/script%3E \\u003cscript\\u003e \ufe64script\ufe65 \uff1cscript\uff1e",
]
"""Markup, handlers, addresses, shortcodes and escapes out of everything that the renderers write."""


def hostile_run(run: Run, texts: Sequence[str]) -> None:
    """A run whose conditions, data sets, notes, tokens and outputs are hostile."""
    parameters = load_cycle(REPOSITORY / "params" / "smoke.yaml")
    write_json(run.path / "parameters.json", parameters.model_dump(mode="json") | {"summary": texts[0]})
    sections = {name: getattr(parameters, name).model_dump(mode="json") for name in ("model", "texts", "activations")}
    step = open_step("activations", str(run.path), **sections)
    step.write({"sources": [row.model_copy(update={"data_set": text}) for text in texts for row in sources()[:1]]})
    step = open_step("frontier", str(run.path))
    step.write({"members": [member(text) for text in texts], "groups": [group(text) for text in texts]})
    rows = [candidate(text, selected=text == texts[0]) for text in texts]
    open_step("selection", str(run.path)).write({"candidates": rows})
    shifted = [row.model_copy(update={"task": text}) for text in texts for row in ood_rows()[:1]]
    controls = [control(note=text) for text in texts]
    open_step("stress", str(run.path), stress=parameters.stress.model_dump(mode="json")).write(
        {"controls": controls, "ood": shifted}
    )
    gates = [gate("random_model", verdict="fail", note=text) for text in texts]
    open_step("gate", str(run.path), gates=parameters.gates.model_dump(mode="json")).write({"gates": gates})
    cells = [new_markdown_cell("# Tokens and outputs")]
    for text in texts:
        outputs = [
            new_output("stream", name="stdout", text=text),
            new_output("display_data", {"text/plain": text}),
            new_output("display_data", {"text/html": text, "text/plain": ""}),
            new_output("display_data", {"text/markdown": text, "text/plain": ""}),
            new_output(
                "display_data", {"text/markdown": tables.markdown_table([{"token": text}], {"Token": "{token}"})}
            ),
            new_output("error", ename="E", evalue=text, traceback=[text]),
        ]
        cells += [new_markdown_cell(text), new_code_cell(f"# {text}\n1", outputs=outputs)]
    path = run.path / "notebooks" / "01_hostile.ipynb"
    path.parent.mkdir()
    nbformat.write(new_notebook(cells=cells), path)
    run.write_manifest()
