from gpboost_timing import bench, design, frame

d = frame()
x = design([d[name].to_numpy() for name in ("x1", "x2", "x3")])
bench(d[["group"]].to_numpy(), d["y"].to_numpy(float), x, "bernoulli_logit")
