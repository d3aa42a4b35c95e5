from gpboost_timing import bench, design, frame

d = frame()
bench(d[["s", "d", "dept"]].to_numpy(), d["y"].to_numpy(float), design([d["service"].to_numpy()]), "gaussian")
