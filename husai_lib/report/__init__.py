"""Report: from records to what people read, and the check that it follows from them.

In: records of runs. Out: tables, sentences and figures for notebooks, the website (`site`), the model card (`export`),
and the audit, which executes the showing cells of the notebooks again (`audit`).
The top of the judging wing: `cycle` and the command line may know it; it never imports torch.
"""
